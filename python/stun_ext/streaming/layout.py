# SPDX-License-Identifier: Apache-2.0
"""What a stored tensor has to do with experts, and the blocks of experts that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from stun_ext.streaming.parts import ExpertAxis, OneExpert, Part, is_scale, num_weights
from stun_ext.streaming.shards import StoredCheckpoint

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredMatrix:
    """One weight matrix of every expert of a block, read from the file where it is used.

    Attributes:
        name: What comes after the expert in the tensors' names, or the fused tensor's last names.
        tensors: The tensor of each expert, or the one that holds all of them.
        axis: Of a fused tensor, how it is divided.
    """

    checkpoint: StoredCheckpoint = field(repr=False)
    name: str
    tensors: tuple[str, ...]
    axis: ExpertAxis | None = None

    @property
    def is_float(self) -> bool:
        """Whether the numbers in the file are the weights, rather than a quantised form of them."""
        return self.checkpoint.tensor(self.tensors[0]).dtype in _FLOATS

    def expert(self, e: int) -> torch.Tensor:
        """Expert `e`'s numbers as a matrix, mapped from the file: nothing is loaded before it is used."""
        if self.axis is None:
            values = mapped(self.checkpoint, self.tensors[e])
        else:
            values = mapped(self.checkpoint, self.tensors[0])
            values = values.narrow(self.axis.axis, e * self.axis.factor, self.axis.factor)
            values = values.squeeze(self.axis.axis) if self.axis.factor == 1 else values
        return values.reshape(-1, values.shape[-1])


@dataclass
class StoredBlock:
    """A router and its experts in a checkpoint: what stage 1 decides on, like `models.MoELayer` for one in memory.

    Attributes:
        checkpoint: The checkpoint.
        index: Index of the decoder layer; layers of multi-token prediction come after the last.
        name: Name of the block: "model.layers.3.block_sparse_moe".
        num_experts: Number of routed experts.
        top_k: Experts chosen per token.
        n_group: Groups of group-limited routing; 1 without it.
        topk_group: Groups chosen per token.
        router: Name of the tensor with the router's rows.
        parts: Everything expert-indexed, by tensor name.
    """

    checkpoint: StoredCheckpoint = field(repr=False)
    index: int
    name: str
    num_experts: int
    top_k: int
    n_group: int
    topk_group: int
    router: str
    parts: dict[str, Part] = field(repr=False)

    @property
    def router_weight(self) -> torch.Tensor:
        """The router's rows [E, H], mapped from the file."""
        part = self.parts[self.router]
        rows = mapped(self.checkpoint, self.router)
        return (rows.T if isinstance(part, ExpertAxis) and part.axis == 1 else rows)[: self.num_experts]

    @property
    def matrices(self) -> list[StoredMatrix]:
        """The experts' matrices, quantised ones included, in the order of their names."""
        single: dict[str, dict[int, str]] = {}
        fused = []
        for name, part in self.parts.items():
            shape = self.checkpoint.tensor(name).shape
            if is_scale(name):
                continue
            if isinstance(part, OneExpert):
                if len(shape) >= 2 and part.expert < self.num_experts:
                    single.setdefault(part.leaf, {})[part.expert] = name
            elif part.in_experts and (len(shape) >= 3 or (len(shape) == 2 and part.factor > 1)):
                fused.append(StoredMatrix(self.checkpoint, name.rpartition(".experts.")[2], (name,), part))
        return [
            *(
                StoredMatrix(self.checkpoint, leaf, tuple(names[e] for e in range(self.num_experts)))
                for leaf, names in sorted(single.items())
            ),
            *sorted(fused, key=lambda matrix: matrix.name),
        ]

    def num_expert_parameters(self) -> int:
        """Weights of one expert: its matrices, without biases, norms and scales."""
        total = 0
        for matrix in self.matrices:
            weights = sum(num_weights(name, self.checkpoint.tensor(name)) for name in matrix.tensors)
            if matrix.axis is not None:
                size = self.checkpoint.tensor(matrix.tensors[0]).shape[matrix.axis.axis]
                weights = weights // size * (size - matrix.axis.extra)
            total += weights // self.num_experts
        return total


@dataclass
class Layout:
    """Everything of a checkpoint that depends on the number of experts.

    Attributes:
        blocks: The blocks with routed experts, in order of layers.
        num_experts: Their number of experts.
        family: ``model_type`` of the config.
        config_paths: Fields of the config to set besides those of ``config.json`` that hold the number already.
        aliases: Per section of the config: alias -> field, of the number's other names.
        notes: What the user should know.
        may_differ: Whether the config can say that layers have different numbers of experts.
        num_extra: How many of the last blocks the model's class does not have: multi-token prediction.
    """

    blocks: list[StoredBlock]
    num_experts: int
    family: str
    config_paths: list[tuple[str, ...]] = field(default_factory=list)
    aliases: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    may_differ: bool = False
    num_extra: int = 0

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every expert-indexed tensor."""
        for block in self.blocks:
            yield from block.parts.items()


def mapped(checkpoint: StoredCheckpoint, name: str) -> torch.Tensor:
    """A floating-point tensor where it lies in its file; it must not be written to."""
    import warnings

    values: Any
    values, bits = checkpoint.mapped(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors and says so
        if bits == "bfloat16":
            return torch.from_numpy(values.view("<i2")).view(torch.bfloat16)
        return torch.from_numpy(values)
