# SPDX-License-Identifier: Apache-2.0
"""The model that travels with the package: 4 layers of 32 experts, bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

import stun_ext.demo


@pytest.fixture
def demo_model() -> Path:
    return stun_ext.demo.MODEL
