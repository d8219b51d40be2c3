# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in a directory as its files describe it: config, index and headers, checked against each other.

No weights are read, and neither torch nor Transformers is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stun_ext.safetensors_file import Header, StoredTensor, check_complete, map_tensor, read_header
from stun_ext.streaming.parts import num_weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        path: Where it is.
        header: What it says of itself.
        identity: Size and time of its last change, by which a changed file is told.
    """

    path: Path
    header: Header
    identity: tuple[int, int]

    @property
    def in_order(self) -> list[tuple[str, StoredTensor]]:
        """Its tensors in the order in which they lie in the file."""
        return sorted(self.header.tensors.items(), key=lambda item: (item[1].begin, item[1].end))


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint of safetensors files.

    Attributes:
        folder: Its directory.
        config: ``config.json``.
        shards: Its safetensors files by name, in order.
        index: The index file's content; None for a checkpoint in one file without an index.
        file_of: Tensor name -> file name.
    """

    folder: Path
    config: dict[str, Any]
    shards: dict[str, Shard]
    index: dict[str, Any] | None
    file_of: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def tensor(self, name: str) -> StoredTensor:
        """The header's entry of a tensor."""
        return self.shards[self.file_of[name]].header.tensors[name]

    def items(self) -> Iterator[tuple[str, StoredTensor]]:
        """All tensors, file by file, in the order in which they are stored."""
        for shard in self.shards.values():
            yield from shard.in_order

    def without(self, names: Iterable[str]) -> StoredCheckpoint:
        """The checkpoint as if some of its tensors were not in it."""
        gone = set(names)
        shards = {
            file: replace(
                shard,
                header=replace(
                    shard.header,
                    tensors={name: t for name, t in shard.header.tensors.items() if name not in gone},
                ),
            )
            for file, shard in self.shards.items()
        }
        index = self.index
        if index is not None and "total_parameters" in (index.get("metadata") or {}):
            lost = sum(num_weights(name, self.tensor(name)) for name in gone)
            metadata = {**index["metadata"], "total_parameters": index["metadata"]["total_parameters"] - lost}
            index = {**index, "metadata": metadata}
        file_of = {name: file for name, file in self.file_of.items() if name not in gone}
        return StoredCheckpoint(self.folder, self.config, shards, index, file_of)

    def mapped(self, name: str) -> Any:
        """A tensor of floating-point numbers where it lies: (array, "bfloat16" for its bits as uint16 or None)."""
        shard = self.shards[self.file_of[name]]
        return map_tensor(shard.path, name, shard.header)


def open_checkpoint(folder: str | os.PathLike[str]) -> StoredCheckpoint:
    """Reads the JSON files and headers of a checkpoint and checks that they agree.

    Args:
        folder: A directory with ``config.json`` and ``model.safetensors``, or shards with an index.

    Raises:
        FileNotFoundError: No such directory, or the index names a file that is not there.
        ValueError: No checkpoint of safetensors files; a file that is damaged or cut short; an index that does not
            list what the files hold; a tensor that two files hold.
        OSError: A file that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"[prune_checkpoint] no such directory: {path}")
    config = _json(path / "config.json", "not a checkpoint of Transformers")
    index = _json(path / INDEX, "") if (path / INDEX).is_file() else None
    weight_map = _weight_map(path, index)
    if weight_map is None and not (path / SINGLE).is_file():
        raise ValueError(f"[prune_checkpoint] {path} holds neither {INDEX} nor {SINGLE}")
    shards: dict[str, Shard] = {}
    file_of: dict[str, str] = {}
    for file in [SINGLE] if weight_map is None else sorted(set(weight_map.values())):
        shards[file] = _shard(path / file)
        for name in shards[file].header.tensors:
            if name in file_of:
                raise ValueError(f"[prune_checkpoint] {path}: both {file_of[name]} and {file} hold {name}")
            file_of[name] = file
    if weight_map is not None:
        _compare(path, weight_map, file_of)
    return StoredCheckpoint(path, config, shards, index, file_of)


def _json(file: Path, otherwise: str) -> dict[str, Any]:
    if otherwise and not file.is_file():
        raise ValueError(f"[prune_checkpoint] {file.parent} holds no {file.name}: {otherwise}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"[prune_checkpoint] {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"[prune_checkpoint] {file} must hold a mapping, got {type(content).__name__}")
    return content


def _weight_map(path: Path, index: Mapping[str, Any] | None) -> dict[str, str] | None:
    if index is None:
        return None
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"[prune_checkpoint] {path / INDEX} has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(
                f"[prune_checkpoint] {path / INDEX}: {name} must be in a file beside it, got {file!r}"
            )
    return weight_map


def _shard(path: Path) -> Shard:
    if not path.is_file():
        raise FileNotFoundError(
            f"[prune_checkpoint] {INDEX} names {path.name}, which is not in {path.parent}"
        )
    state = path.stat()
    header = read_header(path)
    check_complete(path, header)
    return Shard(path, header, (state.st_size, state.st_mtime_ns))


def _compare(path: Path, weight_map: Mapping[str, str], file_of: Mapping[str, str]) -> None:
    for name, file in weight_map.items():
        if file_of.get(name) != file:
            found = f"is in {file_of[name]}" if name in file_of else "is in none of the files"
            raise ValueError(
                f"[prune_checkpoint] {path / INDEX} says that {name} is in {file}, but it {found}"
            )
    for name, file in file_of.items():
        if name not in weight_map:
            raise ValueError(f"[prune_checkpoint] {path / INDEX} does not list {name}, which {file} holds")
