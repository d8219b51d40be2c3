# SPDX-License-Identifier: Apache-2.0
"""Byte ranges from one file to another, by the kernel where it can, and whole files that appear when complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stun_ext.streaming.plan import ShardPlan

_STEP = 32 << 20  # bytes between two words to the caller
_BUFFER = 4 << 20  # held in memory where the kernel cannot copy on its own
# What copy_file_range says of file systems, and pairs of them, that it cannot serve.
_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}

Tick = Callable[[int], None]
# Of two open files: copies matrices with weights zeroed and counts each block's zeros, as `zeroing.zero_matrices`.
Zero = Callable[[int, int, Iterable[Any], Tick], dict[int, int]]


def write_shard(plan: ShardPlan, folder: Path, tick: Tick, zero: Zero) -> tuple[Path, dict[int, int]]:
    """Writes one file of a plan under a temporary name.

    Args:
        plan: The file.
        folder: Where to.
        tick: Called with the number of bytes copied since the last call.
        zero: Writes the matrices with weights to zero.

    Returns:
        The temporary file, which `finish` makes permanent, and for each block's position the zeros in the matrices
        of which weights were zeroed.

    Raises:
        ValueError: NaN or Inf among weights to zero. Nothing is left.
        OSError: Reading or writing failed; the error names the file. Nothing is left.
    """
    temporary = folder / f".{plan.file}.tmp"
    source = os.open(plan.source.path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        target = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        try:
            _write_all(target, plan.header)
            copy_ranges(source, target, plan.ranges(), tick)
            zeros = zero(source, target, plan.edited(), tick) if plan.edits else {}
        except (OSError, ValueError) as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                what = f"copying from {plan.source.path} to {temporary}: {os.strerror(error.errno or 0)}"
                raise OSError(error.errno, f"[prune_checkpoint] {what}") from error
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)
    return temporary, zeros


def finish(temporary: Path, target: Path) -> None:
    """Gives a written file its name once its bytes are on the disk: a file under that name is complete."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, target)


def copy_ranges(source: int, target: int, ranges: Iterable[tuple[int, int, int]], tick: Tick) -> None:
    """Copies ranges of bytes of one open file, (begin, end, begin in the other), to another.

    The kernel copies (`copy_file_range`); where the file systems do not allow that, a small buffer does.

    Raises:
        OSError: Reading or writing failed, or the source ends too early (EIO).
    """
    by_kernel = hasattr(os, "copy_file_range")
    for begin, end, to in ranges:
        os.lseek(target, to, os.SEEK_SET)
        while begin < end:
            size, copied = min(end - begin, _STEP), 0
            if by_kernel:
                try:
                    copied = os.copy_file_range(source, target, size, begin)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
                # No bytes before the end of the source: some file systems answer so instead of refusing.
                by_kernel = copied > 0
            if not copied:
                content = os.pread(source, min(size, _BUFFER), begin)
                if not content:
                    raise OSError(errno.EIO, "the file ends before its last tensor")
                _write_all(target, content)
                copied = len(content)
            begin += copied
            tick(copied)


def _write_all(target: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]
