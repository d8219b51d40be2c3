# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a checkpoint, or cannot be written, is said by name; the source stays and no output appears."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_models import arctic, tree, write

from stun_ext import prune_checkpoint
from stun_ext.streaming import copy as streaming_copy

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.block_sparse_moe.experts.7.w3.weight"


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in", *arctic())


def _edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _edit_shard(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _shard_of(source: Path, name: str) -> Path:
    return source / json.loads((source / INDEX).read_text())["weight_map"][name]


def _cut(source):
    path = source / SHARD
    path.write_bytes(path.read_bytes()[:-3])


def _grow(source):
    path = source / SHARD
    path.write_bytes(path.read_bytes() + b"\0")


def _damage_header(source):
    path = source / SHARD
    content = bytearray(path.read_bytes())
    content[content.index(b'"dtype":"BF16"') + 9 : content.index(b'"dtype":"BF16"') + 13] = b"F64 "[:3] + b'"'
    path.write_bytes(content)


def _wrong_offsets(source):
    path = source / SHARD
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = min((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
    header[name]["shape"][0] += 1
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _lose_tensor(source):
    _edit_shard(_shard_of(source, UP), lambda tensors: tensors.pop(UP))
    _edit_json(source / INDEX, lambda index: index["weight_map"].pop(UP))


def _lose_tensor_not_entry(source):
    _edit_shard(_shard_of(source, UP), lambda tensors: tensors.pop(UP))


def _lose_entry(source):
    _edit_json(source / INDEX, lambda index: index["weight_map"].pop(UP))


def _duplicate(source):
    other = next(path for path in sorted(source.glob("*.safetensors")) if path != _shard_of(source, UP))
    _edit_shard(other, lambda tensors: tensors.update({UP: torch.zeros(24, 16)}))


def _wrong_file(source):
    def change(index):
        index["weight_map"][UP] = next(
            file for file in index["weight_map"].values() if file != index["weight_map"][UP]
        )

    _edit_json(source / INDEX, change)


def _escape(source):
    _edit_json(source / INDEX, lambda index: index["weight_map"].update({UP: "../elsewhere.safetensors"}))


def _lose_router(source):
    name = "model.layers.1.block_sparse_moe.gate.weight"
    _edit_shard(_shard_of(source, name), lambda tensors: tensors.pop(name))
    _edit_json(source / INDEX, lambda index: index["weight_map"].pop(name))


def _nan(source):
    name = "model.layers.1.block_sparse_moe.gate.weight"
    _edit_shard(_shard_of(source, name), lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_cut, ValueError, rf"{SHARD} is truncated: its header describes"),
        (_grow, ValueError, rf"{SHARD} has bytes after its last tensor"),
        (_damage_header, ValueError, rf"{SHARD}"),
        (_wrong_offsets, ValueError, rf"{SHARD}: .* must lie at bytes"),
        (_lose_tensor, ValueError, rf"the checkpoint lacks {UP} \(1 of 8 experts have no w3.weight\)"),
        (_lose_tensor_not_entry, ValueError, rf"says that {UP} is in .*, but it is in none of the files"),
        (_lose_entry, ValueError, rf"does not list {UP}, which model-.* holds"),
        (_duplicate, ValueError, rf"both model-.* and model-.* hold {UP}"),
        (_wrong_file, ValueError, rf"says that {UP} is in .*, but it is in model-"),
        (_escape, ValueError, rf"{UP} must be in a file beside it"),
        (lambda source: (source / SHARD).unlink(), FileNotFoundError, rf"names {SHARD}, which is not in"),
        (lambda source: (source / SHARD).write_bytes(b"no"), ValueError, rf"{SHARD} is not a safetensors file"),
        (lambda source: (source / INDEX).write_text("{"), ValueError, rf"{INDEX} is not JSON"),
        (lambda source: (source / INDEX).write_text("{}"), ValueError, rf"{INDEX} has no weight_map"),
        (lambda source: (source / INDEX).unlink(), ValueError, "holds neither"),
        (lambda source: (source / "config.json").unlink(), ValueError, r"holds no config\.json"),
        (_lose_router, ValueError, r"model\.layers\.1\.block_sparse_moe has experts, but no router"),
        (_nan, ValueError, r"model\.layers\.1\.block_sparse_moe\.gate\.weight holds NaN or Inf"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_damage_is_named(damage, error, words, source, tmp_path):
    damage(source)
    before = tree(source)
    with pytest.raises(error, match=words):
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    assert tree(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_local_experts": 9},
            r"layers\.0\.block_sparse_moe has 8 experts by its tensors, the config has \[9\]",
        ),
        ({"num_experts_per_tok": None}, "no field of config.json says how many experts a token chooses"),
    ],
)
def test_config_that_contradicts(change, words, source, tmp_path):
    _edit_json(source / "config.json", lambda config: config.update(change))
    with pytest.raises(ValueError, match=words):
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"per_layer": "global"}, "per_layer must be 'uniform' for this arctic model"),
        ({"representative": "mean"}, "representative must be nearest or router or score"),
        ({"scope": ("experts", "attention")}, "scope must be experts"),
        ({"criterion": "reap"}, "need calibration data"),
        ({"expert_sparsity": 0.0}, "would keep all 8 experts"),
        ({"expert_sparsity": 0.9}, "at least 2 must stay"),
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met(settings, words, source, tmp_path):
    with pytest.raises(ValueError, match=words):
        prune_checkpoint(source, tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_target_that_may_not_be_written(source, tmp_path):
    with pytest.raises(ValueError, match="is or holds the source"):
        prune_checkpoint(source, source, sparsity=0.5, force=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    prune_checkpoint(source, tmp_path / "out", sparsity=0.5, force=True)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(source, tmp_path):
    (source / SHARD).chmod(0)
    with pytest.raises(PermissionError, match=SHARD):
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)


def test_disk_without_room(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 10_000))
    with pytest.raises(OSError, match=r"bytes are to be written, .* has 10,000 free") as caught:
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_write_that_the_kernel_refuses(source, tmp_path):
    """A limit on the size of files stops the second or third one, as a full disk would; with room, the run goes on."""
    whole = tmp_path / "whole"
    prune_checkpoint(source, whole, sparsity=0.5)
    sizes = sorted(path.stat().st_size for path in whole.glob("*.safetensors"))
    before, limits = tree(source), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] + 16, limits[1]))
    try:
        with pytest.raises(OSError, match=r"copying from .*safetensors to .*File too large") as caught:
            prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "out").exists() and tree(source) == before
    assert not list(tmp_path.rglob("*.tmp"))
    prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    assert _but_names(tree(tmp_path / "out")) == _but_names(tree(whole))


def test_source_that_shrinks_while_it_is_copied(source, tmp_path, monkeypatch):
    original = streaming_copy.copy_ranges

    def shrink(descriptor, *arguments):
        os.truncate(source / SHARD, 2000)
        return original(descriptor, *arguments)

    monkeypatch.setattr(streaming_copy, "copy_ranges", shrink)
    with pytest.raises(OSError, match=rf"copying from .*{SHARD}"):
        prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [OSError(errno.EXDEV, "other"), OSError(errno.EINVAL, "no"), 0])
def test_without_help_of_the_kernel(answer, source, tmp_path, monkeypatch):
    prune_checkpoint(source, tmp_path / "whole", sparsity=0.5)

    def refuse(*arguments):
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(streaming_copy, "_BUFFER", 1000)
    prune_checkpoint(source, tmp_path / "out", sparsity=0.5)
    assert _but_names(tree(tmp_path / "out")) == _but_names(tree(tmp_path / "whole"))


def _but_names(files):
    """Without the model card, which is titled by the directory."""
    return {name: content for name, content in files.items() if name != "README.md"}
