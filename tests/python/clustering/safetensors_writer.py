# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files by hand, damaged ones too: the format is eight bytes of length, JSON, data."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def write(path: Path, entries: dict[str, Any], data: bytes, *, pad: int = 0) -> Path:
    """`entries` as the header has them; `pad` spaces move the data away from a multiple of eight."""
    text = json.dumps(entries).encode()
    header = text + b" " * (-len(text) % 8 + pad)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
