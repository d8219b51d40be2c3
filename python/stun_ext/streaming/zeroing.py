# SPDX-License-Identifier: Apache-2.0
"""Zeroing weights of a matrix between one file and another: a few megabytes of it are in memory at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stun_ext import ops

_CHUNK = 4 << 20  # bytes of a matrix in memory per thread, unless it is stored transposed
_THREADS = 2  # one prunes while the other waits for the disk
_ELEMENTS: Mapping[str, tuple[str, ops.BitsName | None]] = {
    "F32": ("<f4", None), "F16": ("<f2", None), "BF16": ("<u2", "bfloat16"),
}  # fmt: skip

#: dtypes whose weights can be zeroed, as safetensors names them.
DTYPES = tuple(_ELEMENTS)


@dataclass(frozen=True)
class MatrixEdit:
    """What is zeroed of one matrix, or of the rows of one that a tensor holds.

    Attributes:
        tensor: Name of the stored tensor, for messages.
        block: Position of its block among the plan's.
        rows: Outputs.
        cols: Inputs.
        dtype: As safetensors names it.
        is_transposed: Whether it is stored [cols, rows].
        counts: int64 [rows], how many weights of each row go; None with a pattern.
        nm: The pattern (n, m).
        input_sq_norm: float32 [cols], Wanda's; None prunes by magnitude.
    """

    tensor: str
    block: int
    rows: int
    cols: int
    dtype: str
    is_transposed: bool
    counts: Any = field(repr=False)
    nm: tuple[int, int] | None
    input_sq_norm: Any = field(repr=False)

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return self.rows * self.cols * np.dtype(_ELEMENTS[self.dtype][0]).itemsize

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of rows that are zeroed at a time: whole rows, since each loses weights of its own."""
        step = self.rows if self.is_transposed else max(1, _CHUNK * self.rows // max(1, self.bytes))
        for first in range(0, self.rows, step):
            yield first, min(self.rows, first + step)

    def apply(self, content: bytearray, first: int, last: int) -> int:
        """Zeroes rows `first` to `last`, whose bytes are `content`; returns their exact zeros afterwards."""
        element, bits = _ELEMENTS[self.dtype]
        values = np.frombuffer(content, element)
        shape = (self.cols, last - first) if self.is_transposed else (last - first, self.cols)
        matrix = values.reshape(shape).T if self.is_transposed else values.reshape(shape)
        try:
            if self.nm is not None:
                return ops.nm_prune_(matrix, self.input_sq_norm, *self.nm, dtype=bits)
            return ops.wanda_prune_(matrix, self.input_sq_norm, self.counts[first:last], dtype=bits)
        except ValueError as error:
            raise ValueError(f"[prune_checkpoint] {self.tensor}: {error}") from error


def zero_matrices(
    source: int, target: int, edits: Iterable[tuple[int, int, MatrixEdit]], tick: Callable[[int], None]
) -> dict[int, int]:
    """Copies matrices from one open file to another with weights zeroed.

    Args:
        source: The old file.
        target: The new one; its position stays.
        edits: (first byte in the old file, first byte in the new one, what to zero) of each.
        tick: Called with the number of bytes written since the last call, from this thread.

    Returns:
        Block's position -> exact zeros in its matrices afterwards.

    Raises:
        ValueError: NaN or Inf; the tensor is named.
        OSError: Reading or writing failed, or the source ends too early (EIO).
    """
    zeros: dict[int, int] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        running: set[Future[tuple[int, int, int]]] = set()
        try:
            for begin, to, edit in edits:
                row = edit.bytes // edit.rows
                for first, last in edit.chunks():
                    if len(running) > _THREADS:
                        running = _collect(running, zeros, tick)
                    at = first * row
                    running.add(pool.submit(_one, source, target, begin + at, to + at, edit, first, last))
            while running:
                running = _collect(running, zeros, tick)
        except BaseException:
            for future in running:
                future.cancel()
            raise
    return zeros


def _collect(
    running: set[Future[tuple[int, int, int]]], zeros: dict[int, int], tick: Callable[[int], None]
) -> set[Future[tuple[int, int, int]]]:
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        block, found, size = future.result()
        zeros[block] = zeros.get(block, 0) + found
        tick(size)
    return set(left)


def _one(
    source: int, target: int, begin: int, to: int, edit: MatrixEdit, first: int, last: int
) -> tuple[int, int, int]:
    content = bytearray(edit.bytes // edit.rows * (last - first))
    view, done = memoryview(content), 0
    while done < len(content):
        got = os.preadv(source, [view[done:]], begin + done)
        if not got:
            raise OSError(errno.EIO, "the file ends before its last tensor")
        done += got
    zeros = edit.apply(content, first, last)
    done = 0
    while done < len(content):
        done += os.pwrite(target, view[done:], to + done)
    return edit.block, zeros, len(content)
