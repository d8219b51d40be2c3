# SPDX-License-Identifier: Apache-2.0
"""The directory that a checkpoint is written to, so that a kill at any moment costs at most the file in work.

Beside OUT lies ``.OUT.partial``: ``plan`` (which plan its files belong to), ``lock`` (who is writing), ``zeros`` (of
each finished file, how many weights are zero where some were zeroed), and ``files``, which is renamed to OUT when it is
complete. A file there under its own name is complete and on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from stun_ext.checkpoint import put_in_place, sync, sync_directory
from stun_ext.streaming.copy import Tick, finish, write_shard
from stun_ext.streaming.plan import CheckpointPlan, ShardPlan
from stun_ext.streaming.zeroing import zero_matrices

_ZEROS = "zeros"  # beside the files, so that the report of a resumed run is complete


def partial_of(out: Path) -> Path:
    """Where the files of `out` are before they are complete."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Holds ``.OUT.partial`` for this process alone; the lock goes with the process.

    Raises:
        BlockingIOError: Another process is writing `out`.
    """
    partial = partial_of(out)
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EAGAIN,
                f"[prune_checkpoint] another process is writing {out} (it holds {partial / 'lock'})",
            ) from error
        yield partial
    finally:
        os.close(handle)


def is_done(out: Path, plan: CheckpointPlan) -> bool:
    """Whether `out` is the complete result of this very plan, and only tidying up was interrupted."""
    partial = partial_of(out)
    mark = partial / "plan"
    return (
        out.is_dir()
        and not (partial / "files").exists()
        and mark.is_file()
        and mark.read_text(encoding="utf-8") == plan.digest()
    )


def begin(partial: Path, plan: CheckpointPlan) -> Path:
    """The directory for the plan's files, with those that an interrupted run of the same plan finished."""
    files, mark, digest = partial / "files", partial / "plan", plan.digest()
    if not (files.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == digest):
        # In this order, a mark without files means one thing alone: they have become OUT.
        mark.unlink(missing_ok=True)
        shutil.rmtree(files, ignore_errors=True)
        shutil.rmtree(partial / _ZEROS, ignore_errors=True)
        files.mkdir()
        temporary = partial / "plan.tmp"
        temporary.write_text(digest, encoding="utf-8")
        os.replace(temporary, mark)
    names = {shard.file for shard in plan.shards}
    for path in files.iterdir():  # all but the shards is written anew
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return files


def is_written(shard: ShardPlan, files: Path) -> bool:
    """Whether an earlier run finished this file, and left the number of its zeros where weights were zeroed."""
    path = files / shard.file
    there = path.is_file() and path.stat().st_size == len(shard.header) + shard.bytes
    return there and (not shard.edits or _read_zeros(shard, files) is not None)


def _read_zeros(shard: ShardPlan, files: Path) -> dict[int, int] | None:
    try:
        content = json.loads((files.parent / _ZEROS / shard.file).read_text(encoding="utf-8"))
        return {int(block): int(count) for block, count in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # cut short, where the machine failed
        return None


def clear_if_empty(partial: Path, plan: CheckpointPlan) -> bool:
    """Removes ``.OUT.partial`` unless it holds a finished file to go on from; returns whether it did."""
    if any(is_written(shard, partial / "files") for shard in plan.shards):
        return False
    tidy(partial)
    return True


def check_space(plan: CheckpointPlan, files: Path) -> None:
    """Raises OSError (ENOSPC) unless the disk has room for what is still to be written."""
    needed = sum(len(shard.header) + shard.bytes for shard in plan.shards if not is_written(shard, files))
    free = shutil.disk_usage(files).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"[prune_checkpoint] {needed:,} bytes are to be written, {files.parent.parent} has {free:,} free",
        )


def write_shards(plan: CheckpointPlan, files: Path, tick: Tick) -> dict[int, int]:
    """Writes the files that are not there yet; while one goes to the disk, the next is copied.

    Returns:
        For each block's position the zeros in its matrices, where weights were zeroed; those of an earlier run count.

    Raises:
        ValueError: NaN or Inf among weights to zero; finished files stay.
        OSError: Reading or writing failed; finished files stay.
    """
    with ThreadPoolExecutor(1) as flusher:
        pending: Future[None] | None = None
        total: Counter[int] = Counter()
        for shard in plan.shards:
            if is_written(shard, files):
                total.update(_read_zeros(shard, files) or {})
                tick(shard.bytes)
                continue
            temporary, zeros = write_shard(shard, files, tick, zero_matrices)
            if shard.edits:
                (files.parent / _ZEROS).mkdir(exist_ok=True)
                (files.parent / _ZEROS / shard.file).write_text(json.dumps(zeros), encoding="utf-8")
                total.update(zeros)
            if pending is not None:
                pending.result()
            pending = flusher.submit(finish, temporary, files / shard.file)
        if pending is not None:
            pending.result()
    return dict(total)


def put_out(partial: Path, out: Path, force: bool) -> None:
    """Renames the complete files to `out` and tidies up."""
    files = partial / "files"
    sync(files)
    put_in_place(files, out, force)
    tidy(partial)


def tidy(partial: Path) -> None:
    """Removes ``.OUT.partial``, whose files are elsewhere by now, the plan last: until then the same call knows."""
    shutil.rmtree(partial / "files", ignore_errors=True)
    shutil.rmtree(partial / _ZEROS, ignore_errors=True)
    for name in ("plan.tmp", "lock", "plan"):
        (partial / name).unlink(missing_ok=True)
    with suppress(OSError):  # another process may have come for it by now
        partial.rmdir()
    sync_directory(partial.parent)
