# SPDX-License-Identifier: Apache-2.0
"""``model.stun.safetensors``: the routed experts of a pruned model, each matrix as a bitmap and its non-zero values.

The file is a safetensors file that any reader of the format opens; numbers are little-endian and nothing depends on the
machine that wrote it. Its metadata has ``"format": "stun_ext.experts"``, ``"format_version": "1"`` and, as JSON text,
``"experts"``: a list with one object for each fused parameter of the model:

    name         "model.layers.3.mlp.experts.gate_up_proj"
    num_experts  experts in this layer
    shape        [rows, columns] of one expert's matrix; rows are outputs, whatever the model's own layout
    dtype        "float32", "float16" or "bfloat16"
    fused        the checkpoint's tensor of all experts, [E, rows, columns]; or [E, columns, rows] with
                 "is_transposed": true. Or instead:
    per_expert   for each expert the checkpoint's tensors that lie one below the other in its matrix

The matrix of expert e is two tensors, laid out as ``stun_ext/sparse.hpp`` says,

    NAME.e.values  the dtype, [n]: the weights that are not zero, then zeros up to whole cache lines
    NAME.e.masks   U32, [4 · ceil(rows / 4) · ceil(columns / 32)]: one bit per weight

or, where fewer than 15% of its weights are zero, so that packing would not pay, one: ``NAME.e.weight``,
[rows, columns]. Every tensor starts at a multiple of 64 bytes, so that a mapped file is used where it lies; "padding.N"
lie between. The tensors ``source.FILE``, U8, are what `unpack` needs to give the checkpoint's files back byte for byte:
the headers of its safetensors files, and the whole of its index.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from stun_ext import ops
from stun_ext.safetensors_file import Header, read_header
from stun_ext.safetensors_writer import SafetensorsWriter

FILE_NAME = "model.stun.safetensors"
FORMAT, FORMAT_VERSION = "stun_ext.experts", "1"
#: Matrices with fewer zeros than this share stay dense: a bitmap of nearly all weights saves nothing.
MIN_SPARSITY = 0.15

Weight: TypeAlias = "ops.PackedMatrix | npt.NDArray[Any]"
"""An expert's matrix: packed, or dense [rows, columns] (bfloat16 as its bits in uint16)."""

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPE_NAMES = {stored: name for name, stored in _STORED.items()}
_MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class ExpertsEntry:
    """One fused parameter; the fields are those of the module's docstring."""

    name: str
    num_experts: int
    shape: tuple[int, int]
    dtype: str
    fused: str | None = None
    is_transposed: bool = False
    per_expert: list[list[str]] = field(default_factory=list)

    @property
    def parameter_shape(self) -> tuple[int, int, int]:
        """The model's fused parameter: [E, rows, columns], or [E, columns, rows] if it is transposed."""
        rows, columns = self.shape
        return (self.num_experts, columns, rows) if self.is_transposed else (self.num_experts, rows, columns)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all its matrices as a checkpoint has them."""
        return self.num_experts * math.prod(self.shape) * (4 if self.dtype == "float32" else 2)

    def to_dict(self) -> dict[str, Any]:
        """As the metadata has it."""
        document: dict[str, Any] = {
            "name": self.name,
            "num_experts": self.num_experts,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }
        if self.fused is None:
            return {**document, "per_expert": self.per_expert}
        return {**document, "fused": self.fused, "is_transposed": self.is_transposed}


class WrittenMatrix(NamedTuple):
    """What became of one matrix: its bytes in the file, its weights that are not zero, whether it was packed."""

    nbytes: int
    nnz: int
    packed: bool


class PackedWriter:
    """Writes a packed file matrix by matrix; a context manager, see `SafetensorsWriter`."""

    def __init__(
        self, path: str | os.PathLike[str], entries: Iterable[ExpertsEntry], sources: Iterable[str]
    ) -> None:
        entries = list(entries)
        names = [
            f"{entry.name}.{expert}.{part}"
            for entry in entries
            for expert in range(entry.num_experts)
            for part in ("values", "masks", "weight")
        ]
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "experts": json.dumps([entry.to_dict() for entry in entries], separators=(",", ":")),
        }
        self._writer = SafetensorsWriter(path, [*names, *(f"source.{name}" for name in sources)], metadata)

    def __enter__(self) -> PackedWriter:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def add_source(self, file_name: str, content: bytes) -> None:
        """A header, or a whole file, of the dense checkpoint."""
        self._writer.add(f"source.{file_name}", "U8", (len(content),), content)

    def add_matrix(self, entry: ExpertsEntry, expert: int, weight: npt.NDArray[Any]) -> WrittenMatrix:
        """One expert's matrix [rows, columns] of the entry's dtype, any strides."""
        name, stored = f"{entry.name}.{expert}", _STORED[entry.dtype]
        kept = pack_or_keep(weight, "bfloat16" if entry.dtype == "bfloat16" else None)
        if isinstance(kept, ops.PackedMatrix):
            self._writer.add(f"{name}.values", stored, (kept.values.size // weight.itemsize,), kept.values)
            self._writer.add(f"{name}.masks", "U32", (kept.masks.size,), kept.masks)
            return WrittenMatrix(kept.nbytes, kept.nnz, packed=True)
        dense = np.ascontiguousarray(kept)
        self._writer.add(f"{name}.weight", stored, entry.shape, dense)
        return WrittenMatrix(dense.nbytes, int(np.count_nonzero(dense)), packed=False)


def pack_or_keep(weight: Any, dtype: ops.BitsName | None = None) -> Any:
    """The matrix packed, or `weight` itself where too few of its weights are zero (see `MIN_SPARSITY`)."""
    packed = ops.pack(weight, dtype=dtype)
    rows, columns = packed.shape
    return packed if packed.nnz <= (1 - MIN_SPARSITY) * rows * columns else weight


class PackedFile:
    """A packed file, opened: its header is read and checked; matrices are mapped when they are asked for.

    Attributes:
        path: The file.
        entries: The fused parameters it holds, in the file's order.
        sources: Names of the dense checkpoint's files that `source` knows of.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not such a file, of a later version, or an entry is damaged; file and tensor are named.
        """
        self.path = Path(path)
        self._header: Header = read_header(path)
        # Mapped once: a process may have 65,530 mappings, and large models have as many matrices.
        self._data: npt.NDArray[Any] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        metadata = {key: text for key, text in (self._header.metadata or {}).items() if isinstance(text, str)}
        if metadata.get("format") != FORMAT:
            self._refuse("is not a file of packed experts")
        if metadata.get("format_version") != FORMAT_VERSION:
            self._refuse(f"format_version must be {FORMAT_VERSION}, got {metadata.get('format_version')!r}")
        try:
            documents = json.loads(metadata.get("experts", ""))
        except (ValueError, RecursionError):
            documents = None
        if not isinstance(documents, list) or not documents:
            self._refuse("the list of experts is damaged")
        self.entries = [self._entry(document) for document in documents]
        if len({entry.name for entry in self.entries}) != len(self.entries):
            self._refuse("a parameter is listed twice")
        for entry in self.entries:
            for expert in range(entry.num_experts):
                self._check_matrix(entry, expert)
        self.sources = [
            name.removeprefix("source.") for name in self._header.tensors if name.startswith("source.")
        ]

    def matrix(self, entry: ExpertsEntry, expert: int) -> Weight:
        """One expert's matrix where it lies in the file; a packed one is counted, so that kernels can trust it.

        Raises:
            ValueError: Its sizes do not agree with its masks; it is named.
        """
        name = f"{entry.name}.{expert}"
        if f"{name}.weight" in self._header.tensors:
            element = "<u2" if entry.dtype == "bfloat16" else np.dtype(entry.dtype).newbyteorder("<")
            return self._bytes(f"{name}.weight").view(element).reshape(entry.shape)
        values, masks = self._bytes(f"{name}.values"), self._bytes(f"{name}.masks")
        try:
            packed = ops.packed_from_buffers(entry.shape, entry.dtype, values, masks.view(np.uint32))
        except ValueError as error:
            self._refuse(f"{name} is damaged: {error}")
        return packed

    def matrix_bytes(self) -> int:
        """Bytes of all matrices in the file."""
        return sum(tensor.bytes for name, tensor in self._header.tensors.items() if self._is_matrix(name))

    def num_dense(self) -> int:
        """How many matrices are stored dense."""
        return sum(f"{name}.weight" in self._header.tensors for name in self._matrix_names())

    def source(self, file_name: str) -> bytes:
        """A header, or a whole file, of the dense checkpoint."""
        return self._bytes(f"source.{file_name}").tobytes()

    def _bytes(self, name: str) -> npt.NDArray[Any]:
        """A tensor's bytes where they lie."""
        tensor = self._header.tensors[name]
        begin, end = self._header.data_start + tensor.begin, self._header.data_start + tensor.end
        if end > self._data.size:
            self._refuse(f"{name} ends at byte {end:,}, but the file has {self._data.size:,}")
        return self._data[begin:end]

    def _matrix_names(self) -> Iterator[str]:
        for entry in self.entries:
            for expert in range(entry.num_experts):
                yield f"{entry.name}.{expert}"

    def _is_matrix(self, name: str) -> bool:
        return not name.startswith(("source.", "padding."))

    def _entry(self, document: Any) -> ExpertsEntry:
        def is_names(value: Any) -> bool:
            return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)

        name = document.get("name") if isinstance(document, dict) else None
        if not isinstance(name, str):
            self._refuse("the list of experts is damaged")
        try:
            rows, columns = document["shape"]
            sizes = (rows, columns, document["num_experts"])
            entry = ExpertsEntry(
                name,
                document["num_experts"],
                (rows, columns),
                document["dtype"],
                document.get("fused"),
                document.get("is_transposed", False),
                document.get("per_expert", []),
            )
        except (KeyError, TypeError, ValueError):
            self._refuse(f"the entry of {name} is damaged")
        good = all(type(size) is int and 0 < size < _MAX_SIZE for size in sizes)
        good = good and isinstance(entry.dtype, str) and entry.dtype in _STORED
        good = good and isinstance(entry.is_transposed, bool)
        if entry.fused is None:
            experts = entry.per_expert
            good = good and isinstance(experts, list) and len(experts) == entry.num_experts
            good = good and all(is_names(names) for names in experts) and not entry.is_transposed
        else:
            good = good and isinstance(entry.fused, str)
        if not good or entry.num_experts > len(self._header.tensors):
            self._refuse(f"the entry of {name} is damaged")
        return entry

    def _check_matrix(self, entry: ExpertsEntry, expert: int) -> None:
        """Sizes and dtypes of one matrix's tensors; the masks are counted when it is asked for."""
        name, tensors = f"{entry.name}.{expert}", self._header.tensors
        rows, columns = entry.shape
        stored, size = _STORED[entry.dtype], 4 if entry.dtype == "float32" else 2
        weight, values, masks = (tensors.get(f"{name}.{part}") for part in ("weight", "values", "masks"))
        if weight is not None:
            good = weight.dtype == stored and weight.shape == entry.shape and values is None and masks is None
            good = good and weight.bytes == rows * columns * size
            good = good and (self._header.data_start + weight.begin) % size == 0
        elif values is None or masks is None:
            good = False
        else:
            good = values.dtype == stored and masks.dtype == "U32"
            good = good and masks.bytes == 16 * -(-rows // 4) * -(-columns // 32)
        if not good:
            self._refuse(f"the tensors of {name} are missing, or not of the shape and dtype listed")

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"[packed file] {self.path}: {reason}")
