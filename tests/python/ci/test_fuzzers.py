# SPDX-License-Identifier: Apache-2.0
"""The fuzzers of the C ABI call all of it."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_every_function_of_the_c_abi_is_fuzzed() -> None:
    functions = re.findall(r"\b(stun_ext_\w+)\(", (TESTS / "c" / "symbols.h").read_text())
    sources = [*TESTS.glob("fuzz/fuzz_c_*.cpp"), TESTS / "fuzz" / "c_arguments.hpp"]
    fuzzed = set(re.findall(r"\b(stun_ext_\w+)\(", "".join(path.read_text() for path in sources)))
    assert len(functions) > 25
    assert set(functions) - fuzzed == set()
