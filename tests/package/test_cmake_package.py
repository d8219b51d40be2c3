# SPDX-License-Identifier: Apache-2.0
"""The C and C++ libraries as others use them: installed, moved, found, fetched; and what the README prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NVCC = shutil.which("nvcc")
IS_LINUX = sys.platform == "linux"
# What a shared library may need at run time: no OpenMP, no BLAS, nothing of CUDA or Python.
SYSTEM = re.compile(r"lib(stdc\+\+|c\+\+|c\+\+abi|m|gcc_s|c|pthread|rt)\.so\.\d+|ld-linux.*\.so\.\d+")
VERSION = re.findall(
    r'STUN_EXT_VERSION "([^"]+)"', (REPOSITORY / "cpp/include/stun_ext/version.hpp").read_text()
)[0]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_elf = pytest.mark.skipif(
    not IS_LINUX or not shutil.which("nm") or not shutil.which("readelf"),
    reason="reads ELF files with binutils",
)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command that knows of no other installation of ours, and shows what it said if it fails."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("STUN_EXT_", "LD_", "CMAKE_", "PKG_CONFIG"))
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def configure_and_build(source: Path, build: Path, *settings: str) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", build, *generator, *(f"-D{setting}" for setting in settings))
    run("cmake", "--build", build, "--parallel", "2")


def consume(source: Path, build: Path, *settings: str) -> None:
    """Builds a project of this folder and runs its tests, whose output names the library's version."""
    configure_and_build(source, build, *settings)
    run("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of this tree as a packager makes it, with CUDA where there is nvcc."""
    folder = tmp_path_factory.mktemp("build")
    settings = ["CMAKE_BUILD_TYPE=Release", "STUN_EXT_TESTS=OFF", f"STUN_EXT_CUDA={'ON' if NVCC else 'OFF'}"]
    configure_and_build(REPOSITORY, folder, *settings, "CMAKE_CUDA_ARCHITECTURES=90")
    return folder


@pytest.fixture(scope="module")
def prefix(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installation, moved to another place after it was made, in a folder whose name has a blank in it."""
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build, "--prefix", folder / "first")
    (folder / "first").rename(folder / "moved here")
    return folder / "moved here"


@pytest.fixture(scope="module")
def libraries(prefix: Path) -> Path:
    (config,) = prefix.rglob("stun_ext-config.cmake")
    return config.parents[2]


@pytest.mark.parametrize("shared", ["OFF", "ON"])
def test_cpp_finds_the_package(prefix: Path, tmp_path: Path, shared: str) -> None:
    consume(HERE / "cpp_find_package", tmp_path, f"CMAKE_PREFIX_PATH={prefix}", f"BUILD_SHARED_LIBS={shared}")


def test_c_finds_the_package(prefix: Path, tmp_path: Path) -> None:
    consume(HERE / "c_find_package", tmp_path, f"CMAKE_PREFIX_PATH={prefix}")


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
def test_cpp_finds_the_cuda_library(prefix: Path, tmp_path: Path) -> None:
    consume(HERE / "cuda_find_package", tmp_path, f"CMAKE_PREFIX_PATH={prefix}")


def test_cpp_adds_the_subdirectory(tmp_path: Path) -> None:
    consume(HERE / "cpp_add_subdirectory", tmp_path / "build", "CMAKE_BUILD_TYPE=Debug")
    run("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "prefix")
    assert [path.name for path in (tmp_path / "prefix").rglob("*") if path.is_file()] == ["core_static"]


def test_cpp_fetches_the_content(tmp_path: Path) -> None:
    consume(HERE / "cpp_fetch_content", tmp_path, "CMAKE_BUILD_TYPE=Debug")


@pytest.mark.skipif(
    not shutil.which("pkg-config") or not shutil.which("make"), reason="needs make and pkg-config"
)
@pytest.mark.parametrize("static", ["", "--static"])
def test_c_uses_pkg_config(libraries: Path, tmp_path: Path, static: str) -> None:
    place = tmp_path / "prefix"  # no blanks: make and the shell split what pkg-config says at them
    left_out = ["*.so*"] if static else []  # a linker prefers the shared library where it sees both
    shutil.copytree(libraries.parent, place, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    found = place / libraries.name
    command = ["make", "-f", HERE / "c_pkg_config" / "Makefile", f"STATIC={static}", "CC=cc"]
    run(*command, cwd=tmp_path, PKG_CONFIG_PATH=str(found / "pkgconfig"))
    assert f"stun_ext {VERSION}: 3 merges" in run(tmp_path / "consumer", LD_LIBRARY_PATH=str(found))


def block(language: str) -> str:
    """The README's one block of a language."""
    text = (REPOSITORY / "README.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_cpp_program_of_the_readme_builds_as_printed(prefix: Path, tmp_path: Path) -> None:
    program = block("cpp")
    (tmp_path / "CMakeLists.txt").write_text(block("cmake"))
    (tmp_path / "prune.cpp").write_text(program)
    settings = [f"CMAKE_PREFIX_PATH={prefix}", "CMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror"]
    configure_and_build(tmp_path, tmp_path / "build", *settings)
    printed = re.findall(r"printf.*// (.*)$", program, re.MULTILINE)
    assert len(printed) == 2
    assert run(tmp_path / "build" / "prune").split() == " ".join(printed).split()


def test_the_c_program_of_the_readme_builds_as_printed(libraries: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(block("c"))
    library = libraries / "libstun_ext_c.so"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{libraries.parent / 'include'}"]
    run("cc", *flags, "main.c", library, "-o", "main", cwd=tmp_path)
    printed = run(tmp_path / "main", LD_LIBRARY_PATH=str(libraries))
    assert printed.splitlines()[:2] == ["0 and 1 at 1", "2 and 3 at 1"]


def public_headers(prefix: Path) -> list[str]:
    return sorted(str(path.relative_to(prefix / "include")) for path in prefix.glob("include/**/*.h*"))


@pytest.mark.parametrize("compiler", ["c++", "clang++"])
def test_every_public_header_compiles_alone(prefix: Path, compiler: str, tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    headers = public_headers(prefix)
    assert {"stun_ext/cluster.hpp", "stun_ext/stun_ext.h"} <= set(headers)
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
    for header in headers:
        source = tmp_path / (header.replace("/", "_") + ".cpp")
        source.write_text(f'#include "{header}"\n#include "{header}"\n')
        run(compiler, "-std=c++17", *warnings, "-fsyntax-only", "-I", prefix / "include", source)


def exported(library: Path, *flags: str) -> list[str]:
    lines = run("nm", "-D", "--defined-only", *flags, library).splitlines()
    return [line.split(" ", 2)[2] for line in lines]


@needs_elf
@pytest.mark.parametrize(("name", "soversion"), [("core", ".".join(VERSION.split(".")[:2])), ("c", "0")])
def test_the_shared_libraries_are_versioned_and_need_the_system_alone(
    libraries: Path, name: str, soversion: str
) -> None:
    library = libraries / f"libstun_ext_{name}.so"
    assert library.resolve().name == f"libstun_ext_{name}.so.{VERSION}"
    dynamic = run("readelf", "-d", library)
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == [f"libstun_ext_{name}.so.{soversion}"]
    assert not [
        needed for needed in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not SYSTEM.fullmatch(needed)
    ]
    assert not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", dynamic)


@needs_elf
def test_the_core_exports_the_functions_of_its_headers_alone(libraries: Path, prefix: Path) -> None:
    declared: set[str] = set()
    members: set[str] = set()  # of classes, where they are declared without a body
    for path in prefix.glob("include/stun_ext/*.hpp"):
        text = path.read_text()
        for name, body in re.findall(r"^class (\w+)[^;{]*\{(.*?)^\};", text, re.MULTILINE | re.DOTALL):
            # Members without a body, constructors among them.
            pattern = r"^  (?:(?!friend\b)[\w:<>&* ]* [&*]?)?(\w+)\([^();]*(?:\(\)[^();]*)*\)[ \w]*;"
            for member in re.findall(pattern, body, re.MULTILINE):
                members.add(f"stun_ext::{name}::{member}")
        functions = re.findall(
            r"^(?!constexpr|inline|template)\w[\w:<>&* ]* [&*]?(\w+)\(", text, re.MULTILINE
        )
        declared.update(f"stun_ext::{function}" for function in functions)
    symbols = exported(libraries / "libstun_ext_core.so", "--demangle")
    types = [re.match(r"(?:typeinfo|typeinfo name|vtable) for stun_ext::\w+$", symbol) for symbol in symbols]
    names = (symbol.split("(")[0].removesuffix("[abi:cxx11]") for symbol in symbols)
    found = {name for name, is_type in zip(names, types, strict=True) if not is_type}
    assert "stun_ext::linkage_rows" in declared
    assert "stun_ext::PackedMatrix::from_buffers" in members
    assert found == declared | members
