# SPDX-License-Identifier: Apache-2.0
"""Router weights where they lie: in a .npy file, in a safetensors file, or in the checkpoint of a model.

Files are mapped, not loaded, so that a router may be larger than memory and a model's other weights are never read.
From a checkpoint on the hub the routers alone are fetched.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from stun_ext import safetensors_file
from stun_ext.safetensors_file import Bits, StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from stun_ext.models import StoredRouter

_SUFFIXES = (".npy", ".safetensors")
_ADVICE = (
    "name the tensor itself: FILE.safetensors:TENSOR, e.g. model.safetensors:model.layers.3.mlp.gate.weight"
)


@dataclass(frozen=True, eq=False)
class Router:
    """The rows of one router.

    Attributes:
        name: Where they come from: a file, FILE:TENSOR, or the tensor's name in the model's checkpoint.
        rows: [n, d]; usually mapped from a file, read-only.
        dtype: "bfloat16" if `rows` holds bfloat16 bits as uint16.
        layer: Index of the decoder layer, for a model's router.
    """

    name: str
    rows: npt.NDArray[Any]
    dtype: Bits = None
    layer: int | None = None


def is_file(source: str) -> bool:
    """Whether `source` names a file (see `open_router`) rather than a model."""
    path = Path(source)
    return ".safetensors:" in source or path.is_file() or (path.suffix in _SUFFIXES and not path.is_dir())


def open_router(source: str | os.PathLike[str]) -> Router:
    """Maps the rows in a file, which are not read before they are used.

    Args:
        source: A .npy file; or FILE.safetensors:TENSOR; or FILE.safetensors if it holds one matrix alone.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, a damaged one, or a tensor that is missing or no matrix of floats.
    """
    name = os.fspath(source)
    file, colon, tensor = name.partition(".safetensors:")
    if colon:
        file += ".safetensors"
    elif not name.endswith(_SUFFIXES):
        raise ValueError(
            f"[open_router] a .npy or .safetensors file is legal, got {name!r} (for a model: model_routers)"
        )
    if not Path(file).is_file():
        raise FileNotFoundError(f"[open_router] no such file: {file}")
    if file.endswith(".npy"):
        rows, bits = _map_npy(file)
    else:
        header = safetensors_file.read_header(file)
        if not colon:
            matrices = [key for key, entry in header.tensors.items() if len(entry.shape) == 2]
            if len(matrices) != 1:
                raise ValueError(f"[open_router] {name} holds {len(matrices)} matrices; {_ADVICE}")
            tensor = matrices[0]
        rows, bits = safetensors_file.map_tensor(file, tensor, header)
    if rows.ndim != 2:
        raise ValueError(f"[open_router] {name} must be a matrix [n, d], got shape {list(rows.shape)}")
    return Router(name, rows, bits)


def _map_npy(file: str) -> tuple[npt.NDArray[Any], Bits]:
    import numpy as np

    try:
        with Path(file).open("rb") as content:
            rows = _mapped(content)
    except (
        Exception
    ) as error:  # NumPy evaluates the header: a damaged one raises TokenError, OverflowError and more
        raise ValueError(f"[open_router] {file} cannot be mapped as a .npy file: {error}") from error
    if rows.dtype == "V2":  # how NumPy writes the bfloat16 of ml_dtypes
        return rows.view(np.uint16), "bfloat16"
    return rows, None


def _mapped(content: IO[bytes]) -> npt.NDArray[Any]:
    """What `numpy.lib.format.open_memmap` gives, which itself divides by an element's size, be it 0."""
    from numpy import lib, memmap

    readers = {(1, 0): lib.format.read_array_header_1_0, (2, 0): lib.format.read_array_header_2_0}
    version = lib.format.read_magic(content)
    if version not in readers:
        raise ValueError(f"version {version} of the format, which is not one of matrices of numbers")
    shape, is_fortran, dtype = readers[version](content)
    if dtype.itemsize == 0 or dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"{dtype} {list(shape)} is no array of numbers")
    needed, there = math.prod(shape) * dtype.itemsize, os.fstat(content.fileno()).st_size - content.tell()
    if needed > there:
        raise ValueError(f"{dtype} {list(shape)} takes {needed} bytes, but {there} follow the header")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    return memmap(content, dtype, "r", content.tell(), shape, order)


def model_routers(
    model: str | os.PathLike[str],
    *,
    layers: Collection[int] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> list[Router]:
    """The routers of a model, found by building its class on the meta device; no other weights are touched.

    Args:
        model: Directory of a checkpoint with safetensors files, or the id of one on the hub. Of a checkpoint that is
            not in the hub's cache the routers alone are downloaded.
        layers: Indices of decoder layers; None: every layer with routed experts.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: Run Python code that the checkpoint brings along.

    Returns:
        One or (for experts in attention) several per layer, in order.

    Raises:
        ValueError: No experts, no safetensors files, a router that the checkpoint does not hold as one matrix, or a
            layer without experts.
        OSError: The checkpoint cannot be found or read.
    """
    name = os.fspath(model)
    files = _checkpoint_files(name, revision, local_files_only)
    stored = _stored_routers(
        name,
        files.shapes(),
        revision or "main",
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    legal = sorted({router.index for router in stored})
    for layer in layers or ():
        if layer not in legal:
            raise ValueError(f"[model_routers] layers must be of those with experts, {legal}, got {layer}")
    return [
        Router(router.tensor, router.rows(rows), bits, router.index)
        for router in stored
        if layers is None or router.index in layers
        for rows, bits in [files.read(router.tensor)]
    ]


def _stored_routers(
    name: str,
    shapes: dict[str, tuple[int, ...]],
    revision: str,
    *,
    local_files_only: bool,
    trust_remote_code: bool,
) -> list[StoredRouter]:
    from transformers import AutoConfig

    from stun_ext.models import analyze, empty_model, stored_routers

    config = AutoConfig.from_pretrained(
        name, revision=revision, local_files_only=local_files_only, trust_remote_code=trust_remote_code
    )
    with empty_model(config, trust_remote_code=trust_remote_code) as skeleton:
        try:
            stored = stored_routers(analyze(skeleton), shapes)
        except ValueError as error:
            raise ValueError(f"{error}; {_ADVICE}") from error
    if not stored:
        raise ValueError(f"[model_routers] {name} has no routed experts; {_ADVICE}")
    return stored


class _Folder:
    """The safetensors files of a checkpoint in a directory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._headers = {path: safetensors_file.read_header(path) for path in files}
        self._file_of = {name: path for path, header in self._headers.items() for name in header.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._headers[path].tensors[name].shape for name, path in self._file_of.items()}

    def read(self, name: str) -> tuple[npt.NDArray[Any], Bits]:
        path = self._file_of[name]
        return safetensors_file.map_tensor(path, name, self._headers[path])


class _Hub:
    """The safetensors files of a checkpoint on the hub: headers and single tensors are fetched, nothing else."""

    def __init__(self, model: str, revision: str | None) -> None:
        from huggingface_hub import HfFileSystem, get_safetensors_metadata
        from huggingface_hub.errors import NotASafetensorsRepoError

        try:
            metadata = get_safetensors_metadata(model, revision=revision)
        except NotASafetensorsRepoError as error:
            raise ValueError(f"[model_routers] {model} has no safetensors files") from error
        self._root = model if revision is None else f"{model}@{revision.replace('/', '%2F')}"
        self._files = HfFileSystem()
        self._tensors: dict[str, tuple[str, StoredTensor]] = {}
        for file, content in metadata.files_metadata.items():
            for name, info in content.tensors.items():
                stored = StoredTensor(info.dtype, tuple(info.shape), *info.data_offsets)
                self._tensors[name] = (f"{self._root}/{file}", stored)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, (_, tensor) in self._tensors.items()}

    def read(self, name: str) -> tuple[npt.NDArray[Any], Bits]:
        path, tensor = self._tensors[name]
        safetensors_file.check_float(f"[safetensors] {path}", name, tensor)
        data_start = 8 + int.from_bytes(self._files.cat_file(path, 0, 8), "little")
        content = self._files.cat_file(path, data_start + tensor.begin, data_start + tensor.end)
        return safetensors_file.from_bytes(content, tensor)


def _checkpoint_files(name: str, revision: str | None, local_files_only: bool) -> _Folder | _Hub:
    if Path(name).is_dir():
        files = sorted(Path(name).glob("*.safetensors"))
        if not files:
            raise ValueError(f"[model_routers] {name} has no safetensors files; {_ADVICE}")
        return _Folder(files)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        files = sorted(folder.glob("*.safetensors"))
        if files and {path.name for path in files} >= _shards(folder):  # a cache may hold some of them
            return _Folder(files)
    if local_files_only:
        raise ValueError(f"[model_routers] the cache has no complete checkpoint of {name}")
    return _Hub(name, revision)


def _shards(folder: Path) -> set[str]:
    """The files that the checkpoint's index names; none without an index."""
    index = folder / "model.safetensors.index.json"
    return (
        set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if index.is_file()
        else set()
    )
