# SPDX-License-Identifier: Apache-2.0
"""Sizes of a checkpoint's tensors from the headers of its safetensors files: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stun_ext.cli.loading import ModelSource


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of a checkpoint's tensors."""

    total: int
    experts: int  # of tensors that lie below a module named "experts"
    dtypes: tuple[str, ...]  # as safetensors names them, the one with most bytes first
    num_files: int


def stored_bytes(source: ModelSource) -> StoredBytes | None:
    """Bytes by tensor name; None for a checkpoint without safetensors files.

    Raises:
        ValueError: a file that is not in the safetensors format.
        OSError: a hub that cannot be reached.
    """
    from stun_ext.safetensors_file import read_header

    sizes: dict[str, tuple[str, int]] = {}
    folder = source.folder() if source.is_directory or source.local_files_only else None
    if folder is not None:
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            for name, stored in read_header(path).tensors.items():
                sizes[name] = (stored.dtype, stored.bytes)
        num_files = len(files)
    elif source.local_files_only:
        return None
    else:
        from huggingface_hub import get_safetensors_metadata
        from huggingface_hub.errors import NotASafetensorsRepoError

        try:
            metadata = get_safetensors_metadata(source.name, revision=source.revision)
        except NotASafetensorsRepoError:
            return None
        num_files = len(metadata.files_metadata)
        for file in metadata.files_metadata.values():
            for name, tensor in file.tensors.items():
                sizes[name] = (tensor.dtype, tensor.data_offsets[1] - tensor.data_offsets[0])
    if not sizes:
        return None
    by_dtype: dict[str, int] = {}
    for dtype, size in sizes.values():
        by_dtype[dtype] = by_dtype.get(dtype, 0) + size
    return StoredBytes(
        total=sum(size for _, size in sizes.values()),
        experts=sum(size for name, (_, size) in sizes.items() if "experts" in name.split(".")),
        dtypes=tuple(sorted(by_dtype, key=lambda dtype: -by_dtype[dtype])),
        num_files=num_files,
    )
