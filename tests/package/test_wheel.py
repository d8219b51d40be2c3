# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, that it works in an environment with NumPy alone, and that it imports quickly."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "python" / "stun_ext"
BUILD_TOOLS = ("scikit_build_core", "pybind11", "cmake", "ninja")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command outside the source tree, and shows what it said if it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "STUN_EXT_", "SKBUILD_"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel without CUDA, built from a source distribution of this tree, so that both are complete."""
    folder = tmp_path_factory.mktemp("wheel")
    source, isolation = REPOSITORY, []
    if all(
        importlib.util.find_spec(tool) for tool in BUILD_TOOLS
    ):  # they are here: nothing has to be downloaded
        code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
        run(sys.executable, "-c", code, folder, cwd=REPOSITORY)
        (source,) = folder.glob("*.tar.gz")
        isolation = ["--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, *isolation]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run(*pip, "--config-settings=cmake.define.STUN_EXT_CUDA=OFF", source, PATH=path)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and NumPy, nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "numpy", cwd=folder)
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return interpreter


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_whole_package_is_in_the_wheel(wheel: Path) -> None:
    found = set(names(wheel))
    ours = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert {"stun_ext/py.typed", "stun_ext/_core.pyi", "stun_ext/ops/__init__.py"} <= ours
    assert any(name.startswith("stun_ext/demo/") and name.endswith(".safetensors") for name in ours)
    assert ours <= found


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    extensions = [name for name in names(wheel) if name.endswith((".so", ".a", ".hpp", ".cmake", ".dylib"))]
    assert len(extensions) == 1
    assert re.fullmatch(r"stun_ext/_core\.cpython-\d+\w*-[\w-]+\.so", extensions[0])
    assert {name.split("/")[0].split("-")[0] for name in names(wheel)} == {"stun_ext"}


def test_metadata(wheel: Path) -> None:
    header = (REPOSITORY / "cpp/include/stun_ext/version.hpp").read_text()
    version = re.search(r'STUN_EXT_VERSION "([^"]+)"', header)
    assert version is not None
    assert wheel.name.startswith(f"stun_ext-{version[1]}-cp")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"stun_ext-{version[1]}.dist-info/METADATA").decode()
        entry_points = archive.read(f"stun_ext-{version[1]}.dist-info/entry_points.txt").decode()
    assert f"Version: {version[1]}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.10\n" in metadata
    assert "stun-ext" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names(wheel))


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_extension_hides_the_core_and_links_no_python(wheel: Path, tmp_path: Path) -> None:
    if not shutil.which("nm") or not shutil.which("readelf"):
        pytest.skip("needs binutils")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".so"))
        extension = archive.extract(name, tmp_path)
    defined = run("nm", "-D", "--defined-only", extension)
    assert [line.split()[-1] for line in defined.splitlines()] == ["PyInit__core"]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", extension))
    system = re.compile(r"lib(stdc\+\+|c\+\+|c\+\+abi|m|gcc_s|c|pthread|rt)\.so\.\d+|ld-linux.*\.so\.\d+")
    # No OpenMP, BLAS, Python, torch or CUDA.
    assert not [library for library in needed if not system.fullmatch(library)]
    assert (
        "no symbols"
        in run("nm", extension)
        + subprocess.run(["nm", extension], capture_output=True, text=True, check=False).stderr
    )


def test_it_works_with_numpy_alone(python: Path, tmp_path: Path) -> None:
    code = """
import numpy as np, pathlib, sys
import stun_ext
from stun_ext import ops
assert pathlib.Path(stun_ext.__file__).is_relative_to(sys.prefix), stun_ext.__file__
assert stun_ext.__version__ == ops.build_info()["version"]
got = ops.pairwise_distances(np.array([[0, 3], [4, 0]], dtype=np.float32))
assert got.tolist() == [[0, 5], [5, 0]]
"""
    run(python, "-c", code, cwd=tmp_path)


def test_import_is_quick(python: Path, tmp_path: Path) -> None:
    empty, ours = [], []
    for _ in range(5):
        for code, seconds in (("pass", empty), ("import stun_ext", ours)):
            start = time.perf_counter()
            run(python, "-c", code, cwd=tmp_path)
            seconds.append(time.perf_counter() - start)
    assert min(ours) - min(empty) < 0.3


def test_import_stays_quick_where_torch_is_installed() -> None:
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("stun_ext"):
        pytest.skip("needs torch and an installed stun_ext")
    code = """
import sys, time
start = time.perf_counter()
import stun_ext
seconds = time.perf_counter() - start
import stun_ext.ops
assert not {"torch", "transformers"} & set(sys.modules)
print(seconds)
"""
    assert min(float(run(sys.executable, "-c", code)) for _ in range(5)) < 0.3
