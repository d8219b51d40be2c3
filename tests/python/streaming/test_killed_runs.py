# SPDX-License-Identifier: Apache-2.0
"""A run that is killed leaves no half output, and the next one ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from stored_models import arctic, tree, write

from stun_ext import prune_checkpoint
from stun_ext.streaming import output

# What CPython's audit reports of files, in the order in which a run does it.
_EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}


_BOTH_STAGES = {"weight_method": "magnitude", "sparsity": 0.6, "expert_sparsity": 0.5}


def _run_in_child(
    source: Path, out: Path, kill_at: int, force: bool, settings: Mapping[str, Any] = MappingProxyType({})
) -> int | None:
    """Prunes in a forked process that kills itself before its `kill_at`-th step on files of `out`.

    Returns:
        How many steps it made; None if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in _EVENTS and out.name in str(arguments[0]) and str(out.parent) in str(arguments[0]):
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        def tick(phase: str, done: int, total: int) -> None:
            count("open", (str(out),))  # in the middle of a file, too

        try:
            sys.addaudithook(count)
            settings = settings or {"sparsity": 0.5}
            prune_checkpoint(source, out, force=force, progress=tick, **settings)
            os.write(writer, steps.to_bytes(4, "little"))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert len(content) == 4, "the child failed"
    return int.from_bytes(content, "little")


@pytest.mark.parametrize(
    ("existing", "rounds", "settings"),
    [(False, 18, {}), (True, 9, {}), (False, 24, _BOTH_STAGES)],
    ids=["new", "existing", "both stages"],
)
def test_killed_at_random_points(existing, rounds, settings, tmp_path):
    source, out = write(tmp_path / "in", *arctic(), files=4), tmp_path / "out"
    (source / "tokenizer.json").write_text("{}")
    steps = _run_in_child(source, out, 0, False, settings)
    assert steps is not None and steps > 30
    whole, before = tree(out), tree(source)
    draw = random.Random(20)
    killed = 0
    for _ in range(rounds):
        if not existing:
            _remove(out)
        for kill_at in [draw.randint(1, steps) for _ in range(draw.randint(1, 3))]:
            killed += _run_in_child(source, out, kill_at, existing, settings) is None
            # With force, the old checkpoint is aside for a moment; it and the new one have the same bytes here.
            assert not out.exists() or tree(out) == whole
            if out.exists() and not existing:
                break
        if existing or not out.exists():
            assert _run_in_child(source, out, 0, existing, settings) is not None
            assert not output.partial_of(out).exists()
        assert tree(out) == whole
        assert tree(source) == before
    assert killed >= rounds


def test_finished_files_are_not_written_again(tmp_path):
    source, out = write(tmp_path / "in", *arctic(), files=4), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        prune_checkpoint(source, out, sparsity=0.5, progress=_interrupt_after(0.6))
    finished = {
        path: path.stat().st_ino for path in (tmp_path / ".out.partial" / "files").glob("*.safetensors")
    }
    assert finished and not out.exists()
    if sys.version_info >= (3, 11):
        assert "the same call goes on from there" in caught.value.__notes__[0]
    prune_checkpoint(source, out, sparsity=0.5)
    inodes = {path.stat().st_ino for path in out.iterdir()}
    assert set(finished.values()) <= inodes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_killed_while_tidying_up(tmp_path):
    """The checkpoint is complete then: the same call sees that it is, another is told that it exists."""
    source, out = write(tmp_path / "in", *arctic()), tmp_path / "out"
    steps = _run_in_child(source, out, 0, False)
    whole = tree(out)
    seen = 0
    for back in range(1, 6):
        _remove(out)
        assert steps is not None and _run_in_child(source, out, steps + 1 - back, False) is None
        if out.exists() and (output.partial_of(out) / "plan").exists():
            seen += 1
            prune_checkpoint(source, out, sparsity=0.5)
            assert not output.partial_of(out).exists()
            with pytest.raises(FileExistsError):
                prune_checkpoint(source, out, sparsity=0.5)
        elif not out.exists():
            prune_checkpoint(source, out, sparsity=0.5)
        assert tree(out) == whole
    assert seen


@pytest.mark.parametrize("change", ["settings", "source"])
def test_files_of_another_plan_are_not_kept(change, tmp_path):
    tensors, config = arctic()
    source, out = write(tmp_path / "in", tensors, config, files=4), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(source, out, sparsity=0.5, progress=_interrupt_after(0.6))
    settings = {"sparsity": 0.5}
    if change == "settings":
        settings = {"sparsity": 0.25}
    else:
        for path in source.glob("*.safetensors"):
            content = bytearray(path.read_bytes())
            content[-2:] = b"\x01\x02"  # within a weight of the last tensor
            path.write_bytes(content)
    prune_checkpoint(source, out, **settings)
    prune_checkpoint(source, tmp_path / "fresh", **settings)
    drop = "README.md"
    resumed, fresh = tree(out), tree(tmp_path / "fresh")
    resumed.pop(drop), fresh.pop(drop)
    assert resumed == fresh


def test_one_process_at_a_time(tmp_path):
    source, out = write(tmp_path / "in", *arctic()), tmp_path / "out"
    with output.locked(out), pytest.raises(BlockingIOError, match="another process is writing"):
        prune_checkpoint(source, out, sparsity=0.5)
    prune_checkpoint(source, out, sparsity=0.5)
    assert not output.partial_of(out).exists()


def _interrupt_after(share: float):
    def tick(phase: str, done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    return tick


def _remove(out: Path) -> None:
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
