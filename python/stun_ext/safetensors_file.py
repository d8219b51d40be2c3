# SPDX-License-Identifier: Apache-2.0
"""Tensors of a safetensors file without loading it: the header is read, a tensor is mapped where it lies.

NumPy alone, because the library of that name returns copies or torch tensors: a router larger than memory needs
neither. What a header says is checked before any of it is believed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy.typing as npt

Bits: TypeAlias = Literal["bfloat16"] | None
"""What the bits of an array are where NumPy has no name for it: the argument ``dtype`` of the operations."""

_MAX_HEADER = 100 << 20  # the format's own limit
_MAX_NDIM = 32  # NumPy 1's limit, far beyond any tensor
_MAX_SIZE = 2**63 - 1
# Stored dtype -> NumPy's name of it; NumPy has no bfloat16, whose bits it holds as uint16.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Bits of an element, of the dtypes whose tensors can be checked against their shapes.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a header.

    Attributes:
        dtype: As the format names it: "F32", "BF16", ...
        shape: Its shape.
        begin: Where its bytes begin, counted from the start of the data.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """How many bytes it has in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: Its tensors by name.
        data_start: The byte at which the data starts.
        metadata: Its free-form ``__metadata__``; None where it has none.
    """

    tensors: dict[str, StoredTensor]
    data_start: int
    metadata: dict[str, str] | None = field(default=None)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header, the file's first few kilobytes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, or a tensor's entry is damaged (it is named).
    """
    with Path(path).open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else _MAX_HEADER + 1
        # Not asked for what is not there: Python makes room for all of it first.
        is_there = length <= min(_MAX_HEADER, os.fstat(file.fileno()).st_size - 8)
        text = file.read(length) if is_there else b""
    if not is_there or len(text) != length:
        raise ValueError(f"[safetensors] {os.fspath(path)} is not a safetensors file")
    return parse_header(path, text)


def parse_header(path: str | os.PathLike[str], text: bytes) -> Header:
    """The header of a file whose first bytes are the length of `text`, and `text`; `path` is for messages.

    Raises:
        ValueError: As `read_header`.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):  # the latter for what is nested too deeply
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(f"[safetensors] {os.fspath(path)} is not a safetensors file")
    metadata = entries.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry) for name, entry in entries.items()}
    return Header(tensors, 8 + len(text), metadata if isinstance(metadata, dict) else None)


def check_complete(path: str | os.PathLike[str], header: Header) -> None:
    """Raises ValueError, naming file and tensor, unless the tensors fill the file exactly, each as its shape needs.

    That is what the format demands, so a file cut short, grown or with a damaged header is found without reading it.
    """
    where, position = f"[safetensors] {os.fspath(path)}", 0
    for name, tensor in sorted(header.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        bits = _BITS.get(tensor.dtype)
        needed = tensor.bytes if bits is None else -(-math.prod(tensor.shape) * bits // 8)
        if tensor.begin != position or tensor.bytes != needed:
            raise ValueError(
                f"{where}: {name}, {tensor.dtype} {list(tensor.shape)}, must lie at bytes {position:,} to "
                f"{position + needed:,} of the data, but the header says {tensor.begin:,} to {tensor.end:,}"
            )
        position = tensor.end
    size, expected = os.path.getsize(path), header.data_start + position
    if size != expected:
        state = "is truncated" if size < expected else "has bytes after its last tensor"
        raise ValueError(f"{where} {state}: its header describes {expected:,} bytes, it has {size:,}")


def _entry(path: str | os.PathLike[str], name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        dtype, shape, begin, end = None, (), 0, 0
    sizes = all(type(size) is int and 0 <= size <= _MAX_SIZE for size in (*shape, begin, end))
    if not isinstance(dtype, str) or not sizes or len(shape) > _MAX_NDIM or begin > end:
        raise ValueError(
            f"[safetensors] {os.fspath(path)}: the header's entry of {name} is damaged: {json.dumps(entry)[:200]}"
        )
    return StoredTensor(dtype, shape, begin, end)


def map_tensor(path: str | os.PathLike[str], name: str, header: Header) -> tuple[npt.NDArray[Any], Bits]:
    """A tensor of floating-point numbers where it lies in the file, mapped read-only: nothing is loaded.

    Only if an old writer put it at an address that is no multiple of its element size is it copied into memory.

    Args:
        path: The file.
        name: The tensor's name.
        header: From `read_header`.

    Returns:
        The values, and "bfloat16" if they are its bits as uint16.

    Raises:
        ValueError: No such tensor, its dtype is not F64, F32, F16 or BF16, its size is not what its shape needs, or
            the file ends before it does. File and tensor are named.
    """
    import numpy as np

    where = f"[safetensors] {os.fspath(path)}"
    if name not in header.tensors:
        raise ValueError(f"{where} has no tensor {name!r}; {_some_names(header)}")
    tensor = header.tensors[name]
    check_float(where, name, tensor)
    _check_end(where, path, name, header)
    element = np.dtype(_FLOATS[tensor.dtype])
    if tensor.bytes == 0:
        try:
            return np.empty(tensor.shape, element), _bits(tensor)
        except ValueError as error:  # beside the 0 a size beyond what NumPy indexes
            raise ValueError(f"{where}: {name}, {list(tensor.shape)}: {error}") from error
    offset = header.data_start + tensor.begin
    values: npt.NDArray[Any] = np.memmap(path, dtype=element, mode="r", offset=offset, shape=tensor.shape)
    return values if values.flags.aligned else values.copy(), _bits(tensor)


def map_bytes(path: str | os.PathLike[str], name: str, header: Header) -> npt.NDArray[Any]:
    """The bytes of a tensor of any dtype where they lie in the file, uint8, mapped read-only.

    Raises:
        ValueError: No such tensor, or the file ends before it does. File and tensor are named.
    """
    import numpy as np

    where = f"[safetensors] {os.fspath(path)}"
    if name not in header.tensors:
        raise ValueError(f"{where} has no tensor {name!r}; {_some_names(header)}")
    tensor = header.tensors[name]
    _check_end(where, path, name, header)
    if tensor.bytes == 0:
        return np.empty(0, np.uint8)
    offset = header.data_start + tensor.begin
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(tensor.bytes,))


def from_bytes(content: bytes, tensor: StoredTensor) -> tuple[npt.NDArray[Any], Bits]:
    """The tensor from its bytes, read-only; for one that was fetched (see `check_float`)."""
    import numpy as np

    values = np.frombuffer(content, dtype=_FLOATS[tensor.dtype]).reshape(tensor.shape)
    return values, _bits(tensor)


def check_float(where: str, name: str, tensor: StoredTensor) -> None:
    """Raises ValueError, its message starting with `where`, unless `from_bytes` can read such a tensor."""
    import numpy as np

    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{where}: {name} must be one of {', '.join(_FLOATS)}, got {tensor.dtype}")
    needed = math.prod(tensor.shape) * np.dtype(_FLOATS[tensor.dtype]).itemsize
    if needed != tensor.bytes:
        raise ValueError(
            f"{where}: {name}, {tensor.dtype} {list(tensor.shape)}, takes {needed:,} bytes, but the header gives it "
            f"{tensor.bytes:,}"
        )


def _check_end(where: str, path: str | os.PathLike[str], name: str, header: Header) -> None:
    stop, size = header.data_start + header.tensors[name].end, os.path.getsize(path)
    if stop > size:
        raise ValueError(
            f"{where}: {name} ends at byte {stop:,}, but the file has {size:,}: "
            "it is truncated or its header is damaged"
        )


def _bits(tensor: StoredTensor) -> Bits:
    return "bfloat16" if tensor.dtype == "BF16" else None


def _some_names(header: Header) -> str:
    names = sorted(header.tensors)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"it holds {len(names)}: {shown}" if names else "it holds none"
