# SPDX-License-Identifier: Apache-2.0
"""Everything that is decided before anything is changed: the experts of every layer and how sparse the rest becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stun_ext import expert_pruning, weight_pruning
from stun_ext.calibration import tokens_behind_norms
from stun_ext.expert_pruning import ExpertDecisions, LayerDecision
from stun_ext.models import ExpertMatrix, MoEModel, SlicePlan, plan_slices
from stun_ext.recipe import Recipe
from stun_ext.request import ScopedLayer, stage2_sparsity
from stun_ext.statistics import LayerStatistics, Statistics


@dataclass
class Plan:
    """Everything that is decided before anything is changed."""

    layers: list[ScopedLayer]
    experts: list[LayerDecision]  # by position among the MoE layers
    slices: SlicePlan | None  # None where no expert goes
    sparsities: list[float]  # of stage 2, per layer


def decide_experts(moe: MoEModel, statistics: Statistics | None, recipe: Recipe) -> ExpertDecisions:
    """Stage 1's decision for every MoE layer."""
    per_layer: Sequence[LayerStatistics | None] = (
        [None] * len(moe.layers) if statistics is None else statistics.layers
    )
    return expert_pruning.decide(moe.layers, per_layer, recipe)


def make_plan(
    moe: MoEModel,
    layers: Sequence[ScopedLayer],
    stage1: ExpertDecisions,
    statistics: Statistics | None,
    recipe: Recipe,
) -> Plan:
    """Settles how sparse each layer becomes, so that the total over the scope is what was asked."""
    full = stage1.counts == [layer.num_experts for layer in moe.layers]
    slices = None if full else plan_slices(moe, stage1.counts)
    plan = Plan(list(layers), stage1.layers, slices, [0.0] * len(layers))
    if recipe.weight_method == "none" or recipe.nm is not None:
        return plan
    left = [parameters_left(layer, plan.experts) for layer in layers]
    total = sum(layer.parameters for layer in layers)
    sparsity = stage2_sparsity(total, total - sum(left), recipe.sparsity)
    plan.sparsities = [sparsity] * len(layers)
    if recipe.weight_allocation == "owl" and sparsity > 0:
        outliers = [
            weight_pruning.outlier_percent(
                list(_scored_matrices(layer, plan, statistics, recipe)), recipe.owl_threshold
            )
            for layer in layers
        ]
        plan.sparsities = weight_pruning.owl_sparsities(outliers, left, sparsity, recipe.owl_lambda)
    return plan


def parameters_left(layer: ScopedLayer, experts: Sequence[LayerDecision]) -> int:
    """Weights in scope that exist after stage 1."""
    if layer.moe is None:
        return layer.parameters
    gone = layer.moe.num_experts - len(experts[layer.moe_position].kept)
    return layer.parameters - gone * layer.moe.num_expert_parameters()


def _scored_matrices(
    layer: ScopedLayer, plan: Plan, statistics: Statistics | None, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """(weight, norms) of every matrix the layer will hold after stage 1, before anything is changed.

    OWL compares scores across matrices, so norms are means over the tokens that reached each, as it defines them:
    sums would count how often an expert is used.
    """
    if layer.moe is not None:
        decision = plan.experts[layer.moe_position]
        for matrix in layer.moe.matrices:
            for expert in decision.kept:
                members = decision.members.get(expert, [expert])
                weight = matrix.expert(expert)
                if len(members) > 1:
                    weight = torch.stack([matrix.expert(e).detach().to(torch.float32) for e in members]).mean(
                        dim=0
                    )
                norms = _expert_norms(layer, matrix, expert, decision, statistics, recipe)
                if norms is not None and statistics is not None:
                    norms = norms / tokens_behind_norms(layer_statistics(layer, statistics), members)
                yield weight, norms
    for name, linear in layer.linears.items():
        norms = _linear_norms(name, statistics, recipe)
        yield (
            linear.weight,
            norms if norms is None or statistics is None else norms / max(1, statistics.num_tokens),
        )


def _expert_norms(
    layer: ScopedLayer,
    matrix: ExpertMatrix,
    expert: int,
    decision: LayerDecision,
    statistics: Statistics | None,
    recipe: Recipe,
) -> torch.Tensor | None:
    """Squared input norms of an expert by its original id; of a mean, those of all its members together."""
    if recipe.weight_method == "magnitude" or statistics is None:
        return None
    found = layer_statistics(layer, statistics)
    table = found.gated_input_sq_norm if recipe.weight_method == "gated_wanda" else found.input_sq_norm
    rows = table[matrix.name]
    cluster = decision.members.get(expert)
    return rows[expert] if cluster is None else rows[cluster].sum(dim=0)


def layer_statistics(layer: ScopedLayer, statistics: Statistics) -> LayerStatistics:
    """The statistics of the layer's experts."""
    return statistics.layers[layer.moe_position]


def _linear_norms(name: str, statistics: Statistics | None, recipe: Recipe) -> torch.Tensor | None:
    return None if recipe.weight_method == "magnitude" or statistics is None else statistics.linears[name]


def pruned_matrices(
    layer: ScopedLayer, plan: Plan, statistics: Statistics | None, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """(view, norms) of every matrix in scope as it is after stage 1."""
    if layer.moe is not None:
        decision = plan.experts[layer.moe_position]
        for matrix in layer.moe.matrices:
            for position, expert in enumerate(decision.kept):
                norms = _expert_norms(layer, matrix, expert, decision, statistics, recipe)
                yield matrix.expert(position).detach(), norms
    for name, linear in layer.linears.items():
        yield linear.weight.detach(), _linear_norms(name, statistics, recipe)
