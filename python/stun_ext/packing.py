# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with packed experts, from dense ones and back, one matrix in memory at a time.

A packed directory holds

    model.stun.safetensors           the routed experts' matrices (see `stun_ext.packed_file`)
    *.dense.safetensors              all other weights, under their own names, one file for each of the checkpoint's
    model.safetensors.index.dense.json   their index, where there are several
    config.json, tokenizer, ...      as they were, byte for byte

``stun_ext.from_pretrained`` loads it. The names are those of Transformers' variant "dense", so that stock loaders,
which know nothing of packed experts, find no ``model.safetensors`` and stop, instead of running with random experts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stun_ext.checkpoint import new_directory, out_is_free
from stun_ext.checkpoint_files import (
    DENSE_INDEX,
    DENSE_SINGLE,
    INDEX,
    SINGLE,
    Shards,
    check_space,
    chunks,
    copy_others,
)
from stun_ext.models import StoredExperts, analyze, empty_model, stored_experts
from stun_ext.packed_file import DTYPE_NAMES, FILE_NAME, ExpertsEntry, PackedWriter
from stun_ext.safetensors_file import Header, map_bytes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PackReport:
    """What `pack_checkpoint` did.

    Attributes:
        num_matrices: Matrices of experts.
        num_packed: Those that were packed; the others have too few zeros.
        sparsity: Share of zeros in the experts' matrices.
        dense_bytes: Bytes of the experts' matrices in the checkpoint.
        packed_bytes: The same in the packed file.
        other_bytes: Bytes of all other weights, which stay as they are.
    """

    num_matrices: int
    num_packed: int
    sparsity: float
    dense_bytes: int
    packed_bytes: int
    other_bytes: int


def pack_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Packs the experts of a pruned checkpoint; `unpack_checkpoint` gives its files back byte for byte.

    Weights with the bits of +0 are what is left out, whatever pruned them. `out` appears at once when it is complete.

    Args:
        checkpoint: Directory of a dense checkpoint in the safetensors format, float32, float16 or bfloat16. Weights in
            other formats, and directories in it, are not taken along.
        out: The directory to write.
        force: Whether an existing checkpoint at `out` is replaced.
        trust_remote_code: Run Python code that the checkpoint brings along.
        progress: Called with (phase, done, total).

    Raises:
        FileExistsError, NotADirectoryError, PermissionError, ValueError: As `checkpoint.out_is_free`.
        ValueError: No such checkpoint, no routed experts, a family whose experts cannot be computed from packed
            weights, or tensors that are stored in another way than known; each is named.
        OSError: The disk is too small, or writing failed.
    """
    from transformers import AutoConfig

    folder, path = Path(checkpoint), Path(os.path.abspath(out))
    if not (folder / "config.json").is_file():
        raise ValueError(f"[pack] {folder} holds no config.json: not a checkpoint of Transformers")
    if (folder / FILE_NAME).exists():
        raise ValueError(f"[pack] {folder} is packed already")
    out_is_free(path, force, folder)
    shards = Shards(folder)
    if not shards.headers:
        raise ValueError(f"[pack] {folder} holds no {SINGLE} and no {INDEX}")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with empty_model(config, trust_remote_code=trust_remote_code) as skeleton:
        stored = stored_experts(analyze(skeleton), shards.shapes())
    entries = [_entry(experts, shards) for experts in stored]
    packed_names = {name for experts in stored for name in experts.tensors}
    check_space(path, sum(shards.headers[file].tensors[name].bytes for name, file in shards.file_of.items()))
    with new_directory(path, force) as partial:
        counts = _write_packed(partial / FILE_NAME, entries, shards, progress)
        other_bytes = _write_rest(partial, shards, packed_names, progress)
        copy_others(folder, partial)
    return PackReport(other_bytes=other_bytes, **counts)


def _entry(experts: StoredExperts, shards: Shards) -> ExpertsEntry:
    dtypes = {shards.dtype(name) for name in experts.tensors}
    if len(dtypes) != 1 or not dtypes <= DTYPE_NAMES.keys():
        raise ValueError(
            f"[pack] {experts.tensors[0]} and the others of {experts.name} must be of one dtype of "
            f"{', '.join(DTYPE_NAMES)}, got {', '.join(sorted(dtypes))}"
        )
    return ExpertsEntry(
        experts.name,
        experts.num_experts,
        experts.shape,
        DTYPE_NAMES[dtypes.pop()],
        experts.fused,
        experts.is_transposed,
        experts.per_expert,
    )


def _write_packed(
    path: Path, entries: list[ExpertsEntry], shards: Shards, progress: Progress | None
) -> dict[str, Any]:
    files = [*shards.headers, *([shards.index] if shards.index else [])]
    total = sum(entry.num_experts for entry in entries)
    done = packed = packed_bytes = nonzero = 0
    with PackedWriter(path, entries, [file.name for file in files]) as writer:
        for file in files:
            writer.add_source(file.name, _header_bytes(file) if file in shards.headers else file.read_bytes())
        for entry in entries:
            for expert in range(entry.num_experts):
                written = writer.add_matrix(entry, expert, _dense_matrix(entry, expert, shards))
                packed_bytes, nonzero = packed_bytes + written.nbytes, nonzero + written.nnz
                packed, done = packed + written.packed, done + 1
                if progress is not None:
                    progress("pack", done, total)
    weights = sum(entry.num_experts * entry.shape[0] * entry.shape[1] for entry in entries)
    return {
        "num_matrices": total,
        "num_packed": packed,
        "sparsity": 1 - nonzero / weights,
        "dense_bytes": sum(entry.dense_bytes for entry in entries),
        "packed_bytes": packed_bytes,
    }


def _dense_matrix(entry: ExpertsEntry, expert: int, shards: Shards) -> npt.NDArray[Any]:
    """One expert's matrix [rows, columns]: a view into the checkpoint, or its parts put together."""
    if entry.fused is not None:
        matrix: npt.NDArray[Any] = shards.tensor(entry.fused)[expert]
        return matrix.T if entry.is_transposed else matrix
    parts = [shards.tensor(name) for name in entry.per_expert[expert]]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _header_bytes(path: Path) -> bytes:
    """The header's text, which `parse_header` reads."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _write_rest(folder: Path, shards: Shards, packed: set[str], progress: Progress | None) -> int:
    """The weights that are not packed, each in the file that corresponds to its own; returns their bytes."""
    weight_map, total = {}, 0
    for done, (path, header) in enumerate(shards.headers.items(), start=1):
        kept = {name: tensor for name, tensor in header.tensors.items() if name not in packed}
        if kept:
            name = f"{path.name.removesuffix('.safetensors')}.dense.safetensors"
            weight_map.update(dict.fromkeys(kept, name))
            total += _write_kept(folder / name, path, header, sorted(kept, key=lambda key: kept[key].begin))
        if progress is not None:
            progress("other weights", done, len(shards.headers))
    if set(weight_map.values()) != {DENSE_SINGLE}:
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        (folder / DENSE_INDEX).write_text(text, encoding="utf-8")
    return total


def _write_kept(target: Path, path: Path, header: Header, names: list[str]) -> int:
    entries: dict[str, Any] = {"__metadata__": header.metadata or {"format": "pt"}}
    end = 0
    for name in names:
        tensor = header.tensors[name]
        offsets = [end, end + tensor.bytes]
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for chunk in chunks(map_bytes(path, name, header)):
                file.write(chunk)
    return end
