# SPDX-License-Identifier: Apache-2.0
"""The symbol check passes kernels that keep to themselves, and catches what an older processor could end up with."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

pytestmark = pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None, reason="needs a C++ compiler and nm"
)

GOOD = """
namespace { inline int twice(int x) noexcept { return 2 * x; } }
namespace stun_ext { int kernel(int x) noexcept { return twice(x) + static_cast<int>(__builtin_sqrt(x)); } }
"""
INLINE = "inline int twice(int x) { return 2 * x; }\nint kernel(int x) { return twice(x); }\n"
VECTOR = "#include <vector>\ndouble* kernel(std::vector<double>& v) { v.push_back(1.0); return v.data(); }\n"
STREAM = "#include <iostream>\nvoid kernel(int x) { std::cout << x; }\n"


@pytest.fixture(scope="module")
def check_kernel_symbols() -> ModuleType:
    spec = importlib.util.spec_from_file_location("symbols", REPOSITORY / ".ci" / "check_kernel_symbols.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernel(folder: Path, text: str, level: str, name: str = "dot_avx2") -> None:
    source = folder / f"{name}.cpp"
    source.write_text(text)
    target = folder / "core.dir" / "src" / "kernels" / f"{name}.cpp.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    assert COMPILER is not None
    subprocess.run([COMPILER, "-std=c++17", level, "-fPIC", "-c", str(source), "-o", str(target)], check=True)


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_a_kernel_of_its_own_passes(check_kernel_symbols: ModuleType, tmp_path: Path, level: str) -> None:
    compile_kernel(tmp_path, GOOD, level)
    assert check_kernel_symbols.main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "level", "message"),
    [
        (INLINE, "-O0", "weak symbol (W): _Z5twicei"),
        (VECTOR, "-O0", "weak symbol (W): _ZNSt6vector"),
        (VECTOR, "-O2", "weak symbol (W): _ZNSt6vector"),
        (STREAM, "-O2", "takes from the standard library: _ZNSo"),
        ("inline int counter = 0;\nint kernel() { return ++counter; }", "-O2", "weak symbol (u): counter"),
    ],
)
def test_what_another_file_may_get_is_caught(
    check_kernel_symbols: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    level: str,
    message: str,
) -> None:
    compile_kernel(tmp_path, text, level)
    assert check_kernel_symbols.main([str(tmp_path)]) == 1
    assert message in capsys.readouterr().out


def test_portable_kernels_may_do_so(check_kernel_symbols: ModuleType, tmp_path: Path) -> None:
    compile_kernel(tmp_path, VECTOR, "-O2", name="dot_scalar")
    compile_kernel(tmp_path, GOOD, "-O2", name="dot_avx512bf16")
    assert check_kernel_symbols.main([str(tmp_path)]) == 0


def test_a_folder_without_kernels_is_an_error(check_kernel_symbols: ModuleType, tmp_path: Path) -> None:
    compile_kernel(tmp_path, GOOD, "-O2", name="dot_scalar")
    assert check_kernel_symbols.main([str(tmp_path)]) == 2
    assert check_kernel_symbols.main([]) == 2
