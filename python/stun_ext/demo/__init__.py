# SPDX-License-Identifier: Apache-2.0
"""A small, really trained Mixture-of-Experts model and texts to prune and judge it with: no download needed.

The folder travels inside the package. README.md beside this file says where the model and the texts come
from.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent

MODEL = _FOLDER / "model"
"""Directory of the bundled OLMoE checkpoint (4 layers of 32 experts, top-4, 5.5 million parameters)."""

CALIBRATION = _FOLDER / "text" / "calibration.jsonl"
"""Calibration text, one `{"domain", "text"}` a line: seven text domains and `wordmath`."""

VALIDATION = _FOLDER / "text" / "validation.jsonl"
"""Validation text, one `{"domain", "text"}` a line: the seven text domains, other documents."""

WORDMATH = _FOLDER / "text" / "wordmath_test.jsonl"
"""Word problems, one `{"prompt", "solution", "answer"}` a line; an answer must end in `#### answer`."""
