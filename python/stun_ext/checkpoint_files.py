# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint on disk: its safetensors files, mapped, and all that lies beside them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from stun_ext.safetensors_file import Header, map_tensor, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Those of Transformers' variant "dense"; see `stun_ext.packing`.
DENSE_SINGLE, DENSE_INDEX = "model.dense.safetensors", "model.safetensors.index.dense.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_CHUNK = 1 << 24


class Shards:
    """The safetensors files of a checkpoint: the one, or those that its index names.

    Attributes:
        index: The index file, if there is one.
        headers: File -> header; empty when the directory has no such files.
        file_of: Tensor's name -> file.
    """

    def __init__(self, folder: Path, single: str = SINGLE, index: str = INDEX) -> None:
        self.index = folder / index if (folder / index).is_file() else None
        if self.index is not None:
            names = _shard_names(self.index)
        elif (folder / single).is_file():
            names = [single]
        else:
            names = []
        self.headers: dict[Path, Header] = {folder / name: read_header(folder / name) for name in names}
        self.file_of = {name: path for path, header in self.headers.items() for name in header.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: self.headers[path].tensors[name].shape for name, path in self.file_of.items()}

    def dtype(self, name: str) -> str:
        """As the format names it: "BF16", ..."""
        return self.headers[self.file_of[name]].tensors[name].dtype

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A tensor of floating-point numbers, mapped (bfloat16 as its bits in uint16)."""
        path = self.file_of[name]
        return map_tensor(path, name, self.headers[path])[0]


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        names = [""]
    if any(not isinstance(name, str) or not is_plain(name, ".safetensors") for name in names):
        raise ValueError(f"[checkpoint] {index} is no index of safetensors files in its directory")
    return names


def is_plain(name: str, suffix: str) -> bool:
    """Whether `name` is that of a file in the directory at hand, with this suffix."""
    return name.endswith(suffix) and name != suffix and Path(name).name == name


def chunks(content: npt.NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of a mapped tensor in pieces, so that few of its pages are in memory at a time."""
    for begin in range(0, content.size, _CHUNK):
        yield content[begin : begin + _CHUNK].data


def copy_others(source: Path, target: Path) -> None:
    """Copies what is no weight: config, tokenizer, model card; no hidden files and no directories."""
    for item in sorted(source.iterdir()):
        hidden = item.name.startswith(".") or item.name in (INDEX, DENSE_INDEX)
        if item.is_file() and not hidden and item.suffix not in _WEIGHTS:
            shutil.copyfile(item, target / item.name)


def check_space(path: Path, needed: int) -> None:
    """Raises OSError unless the disk that `path` will be on has so many bytes free."""
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"up to {needed / 1e9:.1f} GB are needed, {parent} has {free / 1e9:.1f} GB free"
        )
