# SPDX-License-Identifier: Apache-2.0
"""Files whose headers are damaged in thousands of ways: each is read as another reader reads it, or refused by name."""

from __future__ import annotations

import io
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, deserialize

import stun_ext
from stun_ext.routers import open_router

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
NUMBERS = [
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**32 + 1,
    2**62,
    2**63,
    2**64,
    10**30,
    10**4000,
    1.5,
    True,
    None,
    "3",
    [],
    {},
]
TEXTS = [
    "",
    "F64",
    "F16",
    "BF16",
    "I64",
    "F8_E4M3",
    "f32",
    "\ud800",
    "\x00",
    "<f4",
    "|O",
    "V2",
    "<U0",
    "V0",
    "__metadata__",
]
SNIPPETS = [
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"\xff\xfe",
    b"\x00",
    b"NaN",
    b"-",
    b",",
    b")",
    b"'",
    b"#",
    b"\\",
]
MOST_BYTES = 1 << 20  # that reading a file of some hundred bytes may allocate


def _damaged_bytes(content: bytes, header: int, chance: random.Random) -> bytes:
    """One to three changes, mostly in the first `header` bytes."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(min(header, len(changed)) or 1)
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and changed:
            changed[at] = chance.randrange(256)
        elif kind == 2:
            changed = changed[: chance.randrange(len(changed) + 1)]
        elif kind == 3:
            del changed[at : at + chance.randint(1, 8)]
        elif kind == 4:
            changed[at:at] = chance.choice(SNIPPETS)
        else:
            start = chance.randrange(len(changed) or 1)
            changed[at:at] = changed[start : start + chance.randint(1, 40)]
    return bytes(changed)


def _damaged_json(chance: random.Random) -> bytes:
    """A header of which some value is another one."""
    entry: dict[str, object] = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
    header: dict[str, object] = {"gate.weight": entry}
    if chance.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    for _ in range(chance.randint(1, 2)):
        kind = chance.randrange(7)
        if kind == 0:
            entry["shape"] = [chance.choice(NUMBERS) for _ in range(chance.choice([0, 1, 2, 2, 2, 3, 70]))]
        elif kind == 1:
            entry["data_offsets"] = [chance.choice(NUMBERS) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
        elif kind == 2:
            entry["dtype"] = chance.choice(TEXTS)
        elif kind == 3:
            entry[chance.choice(["dtype", "shape", "data_offsets"])] = chance.choice(NUMBERS)
        elif kind == 4:
            entry.pop(chance.choice(["dtype", "shape", "data_offsets"]), None)
        elif kind == 5:
            header[chance.choice(TEXTS)] = chance.choice([*NUMBERS, entry])
        else:
            entry["shape"], entry["data_offsets"] = chance.choice(
                [
                    ([0, 2**70], [0, 0]),
                    ([2**62, 0], [5, 5]),
                    ([2**62, 2**62], [0, 48]),
                    ([1] * 70 + [12], [0, 48]),
                    ([6, 2], [0, 48]),
                    ([2, 2], [16, 32]),
                ]
            )
    return json.dumps(header).encode()


def _damaged_safetensors(chance: random.Random) -> bytes:
    text = json.dumps({"gate.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}).encode()
    if chance.random() < 0.5:
        text = _damaged_json(chance)
    content = len(text).to_bytes(8, "little") + text + ROWS.tobytes()
    if chance.random() < 0.1:
        length = chance.choice(
            [0, 1, len(text) - 1, len(text) + 1, 100 << 20, (100 << 20) + 1, 2**63, 2**64 - 1]
        )
        return length.to_bytes(8, "little") + content[8:]
    return content if chance.random() < 0.4 else _damaged_bytes(content, 8 + len(text), chance)


def _damaged_npy(chance: random.Random) -> bytes:
    file = io.BytesIO()
    np.save(file, ROWS)
    content = file.getvalue()
    if chance.random() < 0.5:
        return _damaged_bytes(content, 128 if chance.random() < 0.5 else len(content), chance)
    header: dict[str, object] = {"descr": "<f4", "fortran_order": chance.choice([True, False])}
    header["shape"] = chance.choice([(4, 3), (3, 4), (2, 6), (2, 3), (12, 1), (4, 4), (0, 3), (5, 0)])
    for _ in range(chance.randrange(3)):
        kind = chance.randrange(4)
        if kind == 0:
            header["shape"] = tuple(chance.choice(NUMBERS) for _ in range(chance.choice([0, 1, 2, 2, 3, 70])))
        elif kind == 1:
            header["descr"] = chance.choice(["<f2", "<f8", *TEXTS])
        else:
            header[chance.choice(["shape", "descr", "fortran_order", "more"])] = chance.choice(
                [*NUMBERS, *TEXTS]
            )
    text = repr(header).encode("utf-8", "surrogatepass") + b"\n"
    return (
        b"\x93NUMPY"
        + chance.choice([b"\1\0", b"\1\0", b"\3\0"])
        + struct.pack("<H", len(text))
        + text
        + ROWS.tobytes()
    )


def _other_npy(content: bytes) -> np.ndarray | None:
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:
        return None


def _other_safetensors(content: bytes) -> np.ndarray | None:
    try:
        tensors = dict(deserialize(content))
    except (SafetensorError, OverflowError):
        return None
    matrices = [tensor for tensor in tensors.values() if len(tensor["shape"]) == 2]
    if len(matrices) != 1 or matrices[0]["dtype"] not in ("F64", "F32", "F16", "BF16"):
        return None
    dtype = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}[matrices[0]["dtype"]]
    return np.frombuffer(bytes(matrices[0]["data"]), dtype).reshape(matrices[0]["shape"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # NumPy evaluates headers
@pytest.mark.parametrize(
    ("name", "damaged", "other"),
    [("r.npy", _damaged_npy, _other_npy), ("r.safetensors", _damaged_safetensors, _other_safetensors)],
)
def test_damaged_headers_are_refused_by_name_or_read_as_others_read_them(
    name: str,
    damaged: Callable[[random.Random], bytes],
    other: Callable[[bytes], np.ndarray | None],
    tmp_path: Path,
) -> None:
    chance = random.Random(20261125)
    path = tmp_path / name
    read = refused = 0
    tracemalloc.start()
    for trial in range(2000):
        content = damaged(chance)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        rows, message = None, str(path)
        try:
            rows = open_router(path).rows
        except ValueError as error:
            message = str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"trial {trial}: {error!r} for {content[:400]!r}") from error
        assert str(path) in message, (trial, content[:400], message)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak <= MOST_BYTES + 8 * len(content), (trial, peak, content[:400])
        if rows is not None:
            assert rows.ndim == 2 and rows.nbytes <= len(content), (trial, content[:400])
            expected = other(content)
            if expected is not None:  # that one demands more of what lies around a tensor
                assert rows.tobytes() == expected.tobytes() and rows.shape == expected.shape, (trial, content)
                read += 1
    tracemalloc.stop()
    assert read > 100 and refused > 500, (read, refused)


@pytest.mark.parametrize("descr", ["V0", "<U0", "S0", "|O"])
def test_elements_that_are_no_numbers_do_not_end_the_process(descr: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npy"
    text = repr({"descr": descr, "fortran_order": False, "shape": (4, 3)}).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + ROWS.tobytes())
    with pytest.raises(ValueError, match=r"r\.npy cannot be mapped as a \.npy file: .*no array of numbers"):
        open_router(path)


def test_a_damaged_file_stays_an_error_of_cluster_router(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    text = b'{"a":' * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"deep\.safetensors is not a safetensors file"):
        stun_ext.cluster_router(path, n_clusters=2)
