# SPDX-License-Identifier: Apache-2.0
"""What every Python test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests build what they need: a test that reaches for a hub is a mistake, and it must fail at once, not after
# a timeout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch's threads only wait for each other in models this small, ten times longer where the machine is busy. Our own
# have a variable of their own. Read when torch is imported, which no test has done yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data() -> Path:
    """Exact test vectors that travel with the repository."""
    return REPOSITORY / "tests" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Developers' folder of larger trained models and texts, beside the repository; without it, a skip."""
    folder = Path(os.environ.get("STUN_EXT_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"needs the folder of trained models at {folder} (set STUN_EXT_SHARED)")
    return folder
