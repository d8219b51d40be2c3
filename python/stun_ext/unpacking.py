# SPDX-License-Identifier: Apache-2.0
"""The dense checkpoint back from a packed one (see `stun_ext.packing`), byte for byte, a matrix at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stun_ext import ops
from stun_ext.checkpoint import new_directory, out_is_free
from stun_ext.checkpoint_files import (
    DENSE_INDEX,
    DENSE_SINGLE,
    INDEX,
    Shards,
    check_space,
    chunks,
    copy_others,
    is_plain,
)
from stun_ext.packed_file import FILE_NAME, ExpertsEntry, PackedFile
from stun_ext.safetensors_file import map_bytes, parse_header

Progress = Callable[[str, int, int], None]


def unpack_checkpoint(
    packed: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the dense checkpoint that `pack_checkpoint` packed: its safetensors files and index byte for byte.

    Args:
        packed: Directory that `pack_checkpoint` wrote.
        out: The directory to write; it appears at once when it is complete.
        force: Whether an existing checkpoint at `out` is replaced.
        progress: Called with (phase, done, total).

    Returns:
        Bytes of the weights written.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError, ValueError: As `checkpoint.out_is_free`.
        ValueError: Not a packed directory, or a damaged one; the tensor is named.
        OSError: The disk is too small, or writing failed.
    """
    folder, path = Path(packed), Path(os.path.abspath(out))
    if not (folder / FILE_NAME).is_file():
        raise ValueError(f"[unpack] {folder} holds no {FILE_NAME}")
    out_is_free(path, force, folder)
    file = PackedFile(folder / FILE_NAME)
    rest = Shards(folder, DENSE_SINGLE, DENSE_INDEX)
    for name in file.sources:
        if name != INDEX and not is_plain(name, ".safetensors"):
            raise ValueError(f"[unpack] {file.path}: {name!r} is no name of a checkpoint's file")
    headers = {
        name: (file.source(name), parse_header(name, file.source(name)))
        for name in file.sources
        if name != INDEX
    }
    content = _Content(file, rest)
    total = sum(tensor.bytes for _, header in headers.values() for tensor in header.tensors.values())
    check_space(path, total)
    num_tensors, done = sum(len(header.tensors) for _, header in headers.values()), 0
    with new_directory(path, force) as partial:
        for name, (text, header) in headers.items():
            with (partial / name).open("wb") as target:
                target.write(len(text).to_bytes(8, "little") + text)
                for key in sorted(header.tensors, key=lambda key: header.tensors[key].begin):
                    written = 0
                    for chunk in content.of(key):
                        written += target.write(chunk)
                    if written != header.tensors[key].bytes:
                        raise ValueError(
                            f"[unpack] {folder}: {key} takes {header.tensors[key].bytes:,} bytes, {written:,} are there"
                        )
                    done += 1
                    if progress is not None:
                        progress("unpack", done, num_tensors)
        if INDEX in file.sources:
            (partial / INDEX).write_bytes(file.source(INDEX))
        copy_others(folder, partial)
    return total


@dataclass(frozen=True)
class _Place:
    """Where one of the checkpoint's tensors lies in the packed matrices: a whole entry, or a part of one matrix."""

    entry: ExpertsEntry
    expert: int = 0
    part: int | None = None


class _Content:
    """The bytes of the dense checkpoint's tensors."""

    def __init__(self, file: PackedFile, rest: Shards) -> None:
        self._file, self._rest = file, rest
        self._places: dict[str, _Place] = {}
        for entry in file.entries:
            if entry.fused is not None:
                self._places[entry.fused] = _Place(entry)
            for expert, names in enumerate(entry.per_expert):
                for part, name in enumerate(names):
                    self._places[name] = _Place(entry, expert, part)
        self._last: tuple[tuple[str, int], npt.NDArray[Any]] | None = None

    def of(self, name: str) -> Iterator[memoryview | bytes]:
        place = self._places.get(name)
        if place is None:
            if name not in self._rest.file_of:
                raise ValueError(f"[unpack] {self._file.path.parent}: {name} is in none of its files")
            path = self._rest.file_of[name]
            yield from chunks(map_bytes(path, name, self._rest.headers[path]))
        elif place.part is None:
            for expert in range(place.entry.num_experts):
                matrix = self._matrix(place.entry, expert)
                yield (matrix.T if place.entry.is_transposed else matrix).tobytes()
        else:
            matrix, parts = self._matrix(place.entry, place.expert), len(place.entry.per_expert[place.expert])
            size = matrix.shape[0] // parts
            yield matrix[place.part * size : (place.part + 1) * size].tobytes()

    def _matrix(self, entry: ExpertsEntry, expert: int) -> npt.NDArray[Any]:
        """The dense matrix; the last one is kept, because its parts follow each other in most files."""
        key = (entry.name, expert)
        if self._last is None or self._last[0] != key:
            matrix = self._file.matrix(entry, expert)
            if isinstance(matrix, ops.PackedMatrix):
                bits: ops.BitsName | None = "bfloat16" if entry.dtype == "bfloat16" else None
                dense = np.empty(entry.shape, np.uint16 if bits else entry.dtype)
                matrix = ops.unpack(matrix, dense, dtype=bits)
            self._last = (key, matrix)
        return self._last[1]
