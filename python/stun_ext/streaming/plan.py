# SPDX-License-Identifier: Apache-2.0
"""The plan of a pruned checkpoint: for every file its header and the byte ranges of the old one that it takes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stun_ext.safetensors_file import StoredTensor
from stun_ext.streaming.parts import ExpertAxis, Part, num_weights, renamed
from stun_ext.streaming.shards import Shard, StoredCheckpoint

if TYPE_CHECKING:
    from stun_ext.streaming.layout import StoredBlock
    from stun_ext.streaming.zeroing import MatrixEdit

_FORMAT = 1  # of what a plan means; part of its digest

Range = tuple[int, int]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the new checkpoint.

    Attributes:
        name: Its name there.
        source: Its name in the old one.
        dtype: As safetensors names it.
        shape: Its shape there.
        ranges: The bytes it takes, in order, counted from the start of the old file's data.
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[Range, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return sum(end - begin for begin, end in self.ranges)


@dataclass(frozen=True)
class ShardPlan:
    """One file of the new checkpoint, under the name of the old one that its tensors come from.

    Attributes:
        file: Its name.
        source: The old file.
        tensors: What it holds, in order.
        edits: Matrices with weights to zero, by the first byte of their range.
    """

    file: str
    source: Shard
    tensors: tuple[TensorPlan, ...]
    edits: Mapping[int, MatrixEdit] = field(default_factory=dict, repr=False)

    @property
    def header(self) -> bytes:
        """The file's first bytes, up to its data."""
        entries: dict[str, Any] = {}
        if self.source.header.metadata is not None:
            entries["__metadata__"] = self.source.header.metadata
        position = 0
        for tensor in self.tensors:
            end = position + tensor.bytes
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # so that the data is aligned
        return len(text).to_bytes(8, "little") + text

    @property
    def bytes(self) -> int:
        """The size of its tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """What to copy as it is: (begin and end in the old file, begin in the new one), neighbours joined."""
        start, pending = self.source.header.data_start, None
        for begin, end, to in self._placed():
            if begin in self.edits:
                continue
            if pending is not None and pending[1] == begin and pending[2] + begin - pending[0] == to:
                pending = (pending[0], end, pending[2])
                continue
            if pending is not None:
                yield start + pending[0], start + pending[1], pending[2]
            pending = (begin, end, to)
        if pending is not None:
            yield start + pending[0], start + pending[1], pending[2]

    def edited(self) -> Iterator[tuple[int, int, MatrixEdit]]:
        """The matrices with weights to zero: (begin in the old file, begin in the new one, what to zero)."""
        for begin, end, to in self._placed():
            edit = self.edits.get(begin)
            if edit is not None:
                assert edit.bytes == end - begin
                yield self.source.header.data_start + begin, to, edit

    def _placed(self) -> Iterator[tuple[int, int, int]]:
        position = len(self.header)
        for tensor in self.tensors:
            for begin, end in tensor.ranges:
                if begin < end:
                    yield begin, end, position
                position += end - begin


@dataclass(frozen=True)
class CheckpointPlan:
    """A pruned checkpoint before it is written.

    Attributes:
        shards: Its files; those of the old one whose every tensor goes are left out.
        index: Content of its index file; None where the old one has none.
        config: Its ``config.json``.
        kept: Block's name -> ids of the experts it keeps.
        weights: What decided which weights go; part of the digest.
    """

    shards: tuple[ShardPlan, ...]
    index: dict[str, Any] | None
    config: dict[str, Any]
    kept: dict[str, list[int]]
    weights: str = ""

    @property
    def bytes(self) -> int:
        """The size of its tensors."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Weights it holds."""
        return sum(
            num_weights(tensor.name, StoredTensor(tensor.dtype, tensor.shape, 0, tensor.bytes))
            for shard in self.shards
            for tensor in shard.tensors
        )

    def digest(self) -> str:
        """What tells this plan from any other, and its files from changed ones."""
        content = {
            "format": _FORMAT,
            "shards": [
                (shard.file, str(shard.source.path.resolve()), shard.source.identity,
                 hashlib.sha256(shard.header).hexdigest())
                for shard in self.shards
            ],
            "kept": self.kept,
            "config": self.config,
            "weights": self.weights,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plan_checkpoint(
    checkpoint: StoredCheckpoint,
    blocks: Sequence[StoredBlock],
    kept: Sequence[Sequence[int]],
    config: dict[str, Any],
    edits: Mapping[str, Mapping[int, MatrixEdit]] | None = None,
    weights: str = "",
) -> CheckpointPlan:
    """Settles every byte of the new checkpoint.

    Args:
        checkpoint: The old one.
        blocks: Its blocks of experts.
        kept: For each block the ids that stay, in their new order.
        config: The new ``config.json``.
        edits: File -> matrices with weights to zero, by the first byte of their range.
        weights: As in `CheckpointPlan`.
    """
    parts: dict[str, tuple[Part, Mapping[int, int], int]] = {}
    for block, ids in zip(blocks, kept, strict=True):
        numbers = {expert: number for number, expert in enumerate(ids)}
        for name, part in block.parts.items():
            parts[name] = (part, numbers, block.num_experts)
    shards = []
    for file, shard in checkpoint.shards.items():
        tensors = tuple(_tensors(shard, parts))
        if tensors:
            shards.append(ShardPlan(file, shard, tensors, (edits or {}).get(file, {})))
    by_name = {block.name: list(ids) for block, ids in zip(blocks, kept, strict=True)}
    plan = CheckpointPlan(tuple(shards), None, config, by_name, weights)
    return plan if checkpoint.index is None else replace(plan, index=_index(checkpoint, plan))


def _tensors(shard: Shard, parts: Mapping[str, tuple[Part, Mapping[int, int], int]]) -> Iterator[TensorPlan]:
    for name, tensor in shard.in_order:
        if name not in parts:
            yield TensorPlan(name, name, tensor.dtype, tensor.shape, ((tensor.begin, tensor.end),))
            continue
        part, numbers, num_experts = parts[name]
        if isinstance(part, ExpertAxis):
            yield _slices(name, tensor, part, list(numbers), num_experts)
        else:
            new = renamed(name, part, numbers, num_experts)
            if new is not None:
                yield TensorPlan(new, name, tensor.dtype, tensor.shape, ((tensor.begin, tensor.end),))


def _slices(
    name: str, tensor: StoredTensor, part: ExpertAxis, kept: Sequence[int], num_experts: int
) -> TensorPlan:
    """The kept experts' slices of a tensor as ranges of its bytes: one for each slice of the dimensions before."""
    outer = math.prod(tensor.shape[: part.axis])
    entry = tensor.bytes // max(1, outer * tensor.shape[part.axis])  # bytes of one entry along the dimension
    if entry * outer * tensor.shape[part.axis] != tensor.bytes:
        raise ValueError(
            f"[prune_checkpoint] {name}: {tensor.dtype} {list(tensor.shape)} does not divide into bytes"
        )
    spans = [(expert * part.factor, (expert + 1) * part.factor) for expert in kept]
    if part.extra:
        spans.append((num_experts * part.factor, num_experts * part.factor + part.extra))
    ranges = [
        (tensor.begin + (o * tensor.shape[part.axis] + first) * entry,
         tensor.begin + (o * tensor.shape[part.axis] + last) * entry)
        for o in range(outer)
        for first, last in spans
    ]  # fmt: skip
    shape = list(tensor.shape)
    shape[part.axis] = len(kept) * part.factor + part.extra
    return TensorPlan(name, name, tensor.dtype, tuple(shape), tuple(ranges))


def _index(checkpoint: StoredCheckpoint, plan: CheckpointPlan) -> dict[str, Any]:
    assert checkpoint.index is not None
    weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    metadata = dict(checkpoint.index.get("metadata") or {})
    metadata["total_size"] = plan.bytes
    if "total_parameters" in metadata:
        before = sum(num_weights(name, tensor) for name, tensor in checkpoint.items())
        metadata["total_parameters"] += plan.parameters - before
    return {**checkpoint.index, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
