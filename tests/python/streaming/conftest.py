# SPDX-License-Identifier: Apache-2.0
"""Streaming tests use the tiny families of the models' tests too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
