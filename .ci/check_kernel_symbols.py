#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the object files of kernels that are compiled for one instruction set: they emit no weak symbols.

A linker keeps one copy of a weak symbol (an inline function, an instantiated template). If it is the copy of a file
that is compiled for AVX-512, the rest of the library runs AVX-512 code on every processor. Nor do kernels take anything
from the standard library: what one level of optimisation takes from elsewhere another emits as a weak symbol.

Usage: check_kernel_symbols.py FOLDER...  (build folders; every src/kernels/<family>_<isa>.cpp.o below is checked)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

KERNEL = re.compile(r"kernels/\w+(?<!_scalar)\.cpp\.o$")
# Of nm: V and W weak, v and w weak and undefined, u unique in the process.
WEAK_TYPES = "VWvwu"
STANDARD_LIBRARY = re.compile(r"^_Z(N|NK)?S[tabsiod]|^_ZT[VIS]N?S[tabsiod]|^_ZN9__gnu_cxx")


def kernels_in(folder: Path) -> list[Path]:
    """The kernels' object files under a build folder, except the portable ones."""
    return sorted(path for path in folder.rglob("*.cpp.o") if KERNEL.search(path.as_posix()))


def check(path: Path, nm: str = "nm") -> Iterator[str]:
    """What is wrong with an object file, a line each."""
    listing = subprocess.run([nm, str(path)], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        kind, name = re.sub(r"^[0-9a-f]+(?= )", "", line).split(maxsplit=1)
        if kind in WEAK_TYPES:
            yield f"{path}: weak symbol ({kind}): {name}"
        elif kind == "U" and STANDARD_LIBRARY.match(name):
            yield f"{path}: takes from the standard library: {name}"


def main(arguments: list[str]) -> int:
    """Prints the violations; returns the exit code. No kernels at all is an error: the check would prove nothing."""
    if not arguments:
        print("usage: check_kernel_symbols.py FOLDER...", file=sys.stderr)
        return 2
    n_violations = 0
    for folder in map(Path, arguments):
        kernels = kernels_in(folder)
        if not kernels:
            print(f"check_kernel_symbols: no objects of kernels under {folder}", file=sys.stderr)
            return 2
        violations = [text for path in kernels for text in check(path, os.environ.get("NM", "nm"))]
        for text in violations:
            print(text)
        print(f"check_kernel_symbols: {folder}: {len(kernels)} object(s), {len(violations)} violation(s)")
        n_violations += len(violations)
    return 1 if n_violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
