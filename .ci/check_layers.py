#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes or imports whom: the rules of CONTRIBUTING.md, "Who may include or import whom".

Usage: check_layers.py [REPOSITORY]. Prints one line per violation (file:line: rule) and exits with 1 if
there is any. Standard library only, so it runs before anything is installed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CPP_HEADERS = """
    algorithm any array atomic bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits
    clocale cmath complex condition_variable csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib cstring
    ctime cwchar deque exception execution filesystem forward_list fstream functional future initializer_list
    iomanip ios iosfwd iostream istream iterator limits list locale map memory memory_resource mutex new
    numeric optional ostream queue random ratio regex scoped_allocator set shared_mutex sstream stack
    stdexcept streambuf string string_view system_error thread tuple type_traits typeindex typeinfo
    unordered_map unordered_set utility valarray variant vector
"""
CPP_STANDARD = frozenset(_CPP_HEADERS.split())
# The C ABI's headers are compiled as C; what more of them there are starts with the first.
C_STANDARD_FOR_ABI = frozenset({"stddef.h", "stdint.h", "stun_ext/stun_ext.h"})
# Where the standard library has no answer; each stands behind an #ifdef of its platform.
EXCEPTIONS = frozenset(
    {
        ("cpp/src/executor.cpp", "sched.h"),  # how many CPUs this process may run on
        ("cpp/src/cluster/cluster_distances.cpp", "sys/mman.h"),  # huge pages
        ("cpp/src/cpu.cpp", "cpuid.h"),  # which instruction sets they have
        ("cpp/src/sparse/packed.cpp", "sys/mman.h"),
        ("cpp/src/cpu.cpp", "sys/syscall.h"),  # permission to use AMX
        ("cpp/src/cpu.cpp", "unistd.h"),
        ("cpp/src/files/safetensors.cpp", "fcntl.h"),  # mapped files
        ("cpp/src/files/safetensors.cpp", "sys/mman.h"),
        ("cpp/src/files/safetensors.cpp", "sys/stat.h"),
        ("cpp/src/files/safetensors.cpp", "unistd.h"),
        ("bindings/openmp_executor.cpp", "dlfcn.h"),  # the OpenMP runtime that torch has loaded
        ("bindings/openmp_executor.cpp", "unistd.h"),
    }
)
KERNEL = frozenset({"cstdint", "cstddef", "immintrin.h", "arm_neon.h", "arm_sve.h"})
CUDA = re.compile(
    r"^(cuda\w*\.(h|hpp)|cub/.*|thrust/.*|cuda/.*|cooperative_groups(/.*)?\.h|mma\.h|nv/target)$"
)
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', re.MULTILINE)
CPP_SUFFIXES = {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}

HEAVY = frozenset(
    {"torch", "transformers", "datasets", "huggingface_hub", "safetensors", "accelerate", "matplotlib"}
)
LIGHT = frozenset({"stun_ext", "stun_ext.demo", "stun_ext.recipe"})  # what cli/ may load for its --help
CLI_MAY_IMPORT = frozenset(
    {
        "benchmark",
        "calibration_data",
        "checkpoint",
        "cli",
        "clustering",
        "demo",
        "evaluation",
        "experts_backend",
        "files",
        "loading",
        "model_card",
        "models",
    }
    | {
        "ops",
        "packing",
        "pipeline",
        "plots",
        "recipe",
        "report",
        "routers",
        "safetensors_file",
        "statistics",
        "streaming",
        "unpacking",
    }
)
LOADED_BY_USERS_OF_ARRAYS = frozenset(
    {
        "clustering",
        "ops",
        "packed_file",
        "plots",
        "recipe",
        "routers",
        "safetensors_file",
        "safetensors_writer",
    }
)
# Of streaming/: what handles files and bytes, which must not need torch.
FILES_OF_STREAMING = frozenset({"copy", "parts", "plan", "shards"})
MAY_IMPORT_STREAMING = frozenset({"__init__", "cli", "streaming"})
MAY_IMPORT_PIPELINE = frozenset({"__init__", "cli", "demo", "pipeline"})


@dataclass(frozen=True)
class Violation:
    """One broken rule; `path` is relative to the repository."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def check(root: Path) -> list[Violation]:
    """All violations below the repository `root`, in order of path and line."""
    found = [*_check_cpp(root), *_check_python(root)]
    return sorted(found, key=lambda v: (v.path, v.line, v.message))


def _check_cpp(root: Path) -> Iterator[Violation]:
    for layer in ("cpp", "cuda", "bindings"):
        for path in sorted((root / layer).rglob("*")):
            if path.suffix not in CPP_SUFFIXES or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            for match in INCLUDE.finditer(text):
                name = match[1] or match[2]
                reason = _include_problem(root, layer, path, name, quoted=match[2] is not None)
                if reason:
                    line = text.count("\n", 0, match.start(match.lastindex or 0)) + 1
                    yield Violation(path.relative_to(root).as_posix(), line, f"includes {name}: {reason}")


def _include_problem(root: Path, layer: str, path: Path, name: str, *, quoted: bool) -> str | None:
    own = (root / layer).resolve()
    places = [(folder / name).resolve() for folder in (path.parent, own / "src", own)]
    is_own = quoted and any(place.is_file() and own in place.parents for place in places)
    in_cpp = (root / "cpp" / "include" / name).is_file()
    in_cuda = (root / "cuda" / "include" / name).is_file()
    is_header = "include" in path.relative_to(root).parts
    if path.parent == root / "cpp" / "src" / "kernels" and not path.stem.endswith("_scalar"):
        # A file built for a newer ISA that instantiates a standard template may supply
        # the baseline's copy of it.
        contract = quoted and (path.parent / name).is_file() and "/" not in name
        return None if name in KERNEL or contract else "a kernel includes intrinsics and its contract"
    if path.suffix == ".h":
        return None if name in C_STANDARD_FOR_ABI else "the C ABI's header is read as C, and stands alone"
    if (path.relative_to(root).as_posix(), name) in EXCEPTIONS:
        return None
    if name in CPP_STANDARD:
        return None
    if path.parent == root / "cpp" / "src" / "c":
        own_header = quoted and (path.parent / name).is_file() and "/" not in name
        return None if in_cpp or own_header else "the C ABI stands on the public headers"
    if layer == "cpp":
        if name.startswith("stun_ext/cuda/"):
            return "cpp knows nothing of cuda"
        if in_cpp or (is_own and not is_header):
            return None
        return "cpp includes the C++ standard library and stun_ext/ alone"
    if layer == "cuda":
        if in_cpp or in_cuda or (is_own and not is_header) or CUDA.match(name):
            return None
        return "cuda includes the headers of cpp, its own and CUDA's"
    if in_cpp or in_cuda or is_own or name.startswith("pybind11/"):
        return None
    return "bindings include public headers and pybind11"


@dataclass(frozen=True)
class _Import:
    module: str
    line: int
    at_import_time: bool


def _check_python(root: Path) -> Iterator[Violation]:
    package = root / "python" / "stun_ext"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        relative = path.relative_to(root).as_posix()
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=relative)
        except SyntaxError as error:
            yield Violation(relative, error.lineno or 1, f"is not Python: {error.msg}")
            continue
        for item in _imports(tree, package, parts):
            for message in _import_problems(parts, item):
                yield Violation(relative, item.line, f"imports {item.module}: {message}")


def _import_problems(parts: tuple[str, ...], item: _Import) -> Iterator[str]:
    layer = parts[0]  # "__init__", "ops", "models", "cli", ...
    top, _, rest = item.module.partition(".")
    target = rest.partition(".")[0] if top == "stun_ext" else None
    heavy_now = top in HEAVY and item.at_import_time
    if target == "_core" and layer != "ops":
        yield "ops/ alone imports stun_ext._core"
    if layer == "models" and target is not None and target not in ("models", "_core"):
        yield "models/ imports nothing of stun_ext but models/"
    if target == "cli" and layer != "cli":
        yield "cli/ is imported by nobody"
    if target == "pipeline" and layer not in MAY_IMPORT_PIPELINE:
        yield "pipeline.py is above every module but cli/ and demo/"
    if target == "streaming" and layer not in MAY_IMPORT_STREAMING:
        yield "streaming/ is above every module but cli/"
    if layer == "streaming" and parts[-1] in FILES_OF_STREAMING and item.at_import_time:
        own = target == "streaming" and rest.partition(".")[2] in FILES_OF_STREAMING
        if top in HEAVY or not (target in (None, "safetensors_file") or own):
            yield f"{parts[-1]}.py of streaming/ knows files alone"
    if layer == "__init__" and item.at_import_time and (top in HEAVY or target or top in ("numpy", "yaml")):
        yield "import stun_ext must stay light: load it in __getattr__"
    if top == "matplotlib" and (layer != "plots" or "pyplot" in item.module):
        yield "plots.py alone draws, and without pyplot, whose state is the user's"
    if (layer in LOADED_BY_USERS_OF_ARRAYS or parts == ("demo", "__init__")) and heavy_now:
        yield f"{layer} must not load {top} at import time"
    if layer == "ops" and (target not in (None, "_core", "ops") or top == "transformers"):
        yield "ops/ stands on _core alone"
    if layer == "cli":
        if target and target not in CLI_MAY_IMPORT and target != "_core":
            yield f"cli/ calls {', '.join(sorted(CLI_MAY_IMPORT))}"
        light = target == "cli" or item.module in LIGHT
        if heavy_now or (top == "stun_ext" and item.at_import_time and not light):
            yield "heavy imports of cli/ sit inside the commands, so that --help is quick"


def _imports(tree: ast.Module, package: Path, parts: tuple[str, ...]) -> Iterator[_Import]:
    """Every import as an absolute module name; those under TYPE_CHECKING count as not at import time."""
    later: set[int] = set()  # ids of nodes that do not run when the module is imported
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            body = list(node.body)
        else:
            continue
        later.update(id(inner) for statement in body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        now = id(node) not in later
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, node.lineno, now)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, parts)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = base.split(".")[0] == "stun_ext" and _is_module(package, name)
                is_module |= name == "matplotlib.pyplot"
                yield _Import(name if is_module else base, node.lineno, now)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield _Import(node.args[0].value, node.lineno, now)


def _absolute(node: ast.ImportFrom, parts: tuple[str, ...]) -> str:
    if not node.level:
        return node.module or ""
    here = (
        "stun_ext",
        *parts,
    )  # ("stun_ext", "cli", "__init__") or ("stun_ext", "ops"): one level up is the package
    base = here[: len(here) - node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def _is_module(package: Path, name: str) -> bool:
    path = package.joinpath(*name.split(".")[1:])
    return name == "stun_ext._core" or path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def main(arguments: list[str]) -> int:
    """Prints the violations; returns the exit code."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    if not (root / "python" / "stun_ext").is_dir() or not (root / "cpp").is_dir():
        print(f"check_layers: {root} is not a checkout of stun_ext", file=sys.stderr)
        return 2
    violations = check(root)
    for violation in violations:
        print(violation)
    print(f"check_layers: {len(violations)} violation(s)")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
