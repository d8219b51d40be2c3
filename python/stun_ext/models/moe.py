# SPDX-License-Identifier: Apache-2.0
"""A model's routed experts: what `analyze` returns."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .schema import ExpertTensor, Schema, named_tensors

_MATRIX_NAMES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
# What Transformers' `use_experts_implementation` sets on an experts module, and our statistics rely on.
_EXPERTS_INTERFACE = (
    "has_gate",
    "has_bias",
    "is_transposed",
    "is_concatenated",
    "num_experts",
    "_apply_gate",
)


class ExpertWeights(Protocol):
    """One weight matrix of every expert of a layer, wherever it is stored."""

    def expert(self, e: int) -> torch.Tensor:
        """Expert `e`'s matrix."""


class RoutedLayer(Protocol):
    """What a choice of experts reads of a layer; `MoELayer` has it for a model in memory."""

    @property
    def index(self) -> int:
        """Index of the decoder layer."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def num_experts(self) -> int:
        """Number of routed experts."""

    @property
    def top_k(self) -> int:
        """Experts chosen per token."""

    @property
    def n_group(self) -> int:
        """Groups of group-limited routing; 1 without it."""

    @property
    def topk_group(self) -> int:
        """Groups chosen per token."""

    @property
    def router_weight(self) -> torch.Tensor:
        """The router's rows [E, H]."""

    @property
    def matrices(self) -> Sequence[ExpertWeights]:
        """The experts' matrices."""


@dataclass
class ExpertMatrix:
    """One weight matrix of every expert of a layer, stored fused in one parameter.

    Attributes:
        name: Attribute on the experts module: "gate_up_proj", "gate_proj", "up_proj" or "down_proj".
        parameter: The fused parameter, [E, out, in], or [E, in, out] when transposed; rows after the experts
            (zero experts) are possible.
        is_transposed: Whether it is stored [E, in, out].
        input: What multiplies the matrix: "hidden" (the layer's input, size H) or "intermediate" (size I).
    """

    name: str
    parameter: nn.Parameter
    is_transposed: bool
    input: str

    def expert(self, e: int) -> torch.Tensor:
        """Expert `e`'s matrix [out, in], a view into the parameter that autograd does not see."""
        matrix = self.parameter.detach()[e]
        return matrix.T if self.is_transposed else matrix


@dataclass
class MoELayer:
    """A block with a router and routed experts.

    Attributes:
        index: Index of the decoder layer it belongs to.
        name: Dotted name of the block, e.g. "model.layers.3.mlp".
        block: The block.
        experts: The module that holds the fused expert weights.
        experts_name: Its dotted name, e.g. "model.layers.3.mlp.experts".
        num_experts: Number of routed experts now.
        top_k: Experts chosen per token.
        n_group: Groups of group-limited routing; 1 without it.
        topk_group: Groups chosen per token; 1 without it.
    """

    index: int
    name: str
    block: nn.Module
    experts: nn.Module
    experts_name: str
    num_experts: int
    top_k: int
    n_group: int
    topk_group: int
    hidden_size: int | None = field(repr=False)
    tensors: list[ExpertTensor] = field(repr=False)  # everything expert-indexed in the block; full names

    @property
    def matrices(self) -> list[ExpertMatrix]:
        """The experts' matrices, read from the module now; empty for layouts without standard names."""
        return _expert_matrices(self.experts, self.hidden_size)

    @property
    def router_tensor(self) -> ExpertTensor:
        """The tensor that holds the router's rows, one per expert, whatever module it is in.

        Raises:
            ValueError: No tensor of the block has one row per expert.
        """
        prefix = self.experts_name + "."
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(self.block)}
        candidates = []
        for spec in self.tensors:
            outside = self.experts is self.block or not spec.name.startswith(prefix)
            if outside and spec.ndim == 2 and spec.factor == 1:
                width = shapes[spec.name[len(self.name) + 1 :]][1 - spec.axis]
                if width > 1:  # not a bias stored as [1, E]
                    candidates.append((width == self.hidden_size, spec))
        if not candidates:
            raise ValueError(f"[router_weight] {self.name} has no router weight with one row per expert")
        return max(candidates, key=lambda candidate: candidate[0])[1]

    @property
    def router_weight(self) -> torch.Tensor:
        """The router's rows [E, H], a view that autograd does not see.

        Raises:
            ValueError: As `router_tensor`.
        """
        spec = self.router_tensor
        tensor = dict(named_tensors(self.block))[spec.name[len(self.name) + 1 :]].detach()
        return (tensor.T if spec.axis == 1 else tensor)[: self.num_experts]

    def num_expert_parameters(self) -> int:
        """Weights of one expert: its matrices, without biases and norms."""
        total = 0
        tensors = dict(named_tensors(self.block))
        for spec in self.tensors:
            if spec.holds_matrices:
                tensor = tensors[spec.name[len(self.name) + 1 :]]
                total += tensor.numel() // tensor.shape[spec.axis] * spec.factor
        return total

    @property
    def supports_statistics(self) -> bool:
        """Whether the experts module has Transformers' standard interface, which calibration overrides.

        That is a forward(hidden_states, top_k_index, top_k_weights), the attributes that describe the layout
        (`has_gate`, `is_transposed`, ...), and the standard matrices.
        """
        if not self.matrices or not all(hasattr(self.experts, name) for name in _EXPERTS_INTERFACE):
            return False
        forward = getattr(type(self.experts).forward, "__wrapped__", type(self.experts).forward)
        return len(inspect.signature(forward).parameters) == 4  # with self


def _expert_matrices(experts: nn.Module, hidden_size: int | None) -> list[ExpertMatrix]:
    parameters = {
        name: parameter
        for name in _MATRIX_NAMES
        if isinstance(parameter := experts._parameters.get(name), nn.Parameter) and parameter.ndim == 3
    }
    is_transposed = getattr(experts, "is_transposed", None)
    if is_transposed is None:
        # Only the hidden size tells; one matrix with two different sizes settles it for all of the module.
        verdicts = set()
        for name, parameter in parameters.items():
            rows, columns = parameter.shape[1:]
            if rows != columns and hidden_size in (rows, columns):
                verdicts.add((columns == hidden_size) == (name == "down_proj"))
        if len(verdicts) != 1:
            return []
        is_transposed = verdicts.pop()
    return [
        ExpertMatrix(
            name, parameter, bool(is_transposed), "intermediate" if name == "down_proj" else "hidden"
        )
        for name, parameter in parameters.items()
    ]


@dataclass
class MoEModel:
    """A model and its layers with routed experts.

    Attributes:
        model: The model.
        config: The (text) config that holds the expert count; the model's own config when there is none.
        family: `model_type` of the model's config.
        layers: The layers with routed experts, in order; empty for a dense model.
        expert_count_keys: Config fields that hold the expert count, dotted from the model's config.
        num_experts: The config's expert count, which is the largest of the layers'; 0 for a dense model.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    family: str
    layers: list[MoELayer]
    expert_count_keys: list[str]
    num_experts: int
    schema: Schema | None = field(repr=False)

    @property
    def is_ragged(self) -> bool:
        """Whether layers differ in their number of experts."""
        return any(layer.num_experts != self.num_experts for layer in self.layers)
