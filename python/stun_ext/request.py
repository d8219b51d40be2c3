# SPDX-License-Identifier: Apache-2.0
"""Settles what is asked of a model and refuses what cannot be met, before any long work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stun_ext import expert_pruning
from stun_ext.models import MoELayer, MoEModel, decoder_linears, plan_slices, slicing_refusals
from stun_ext.recipe import Recipe
from stun_ext.statistics import Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ScopedLayer:
    """One decoder layer's matrices in scope."""

    index: int
    name: str
    moe: MoELayer | None
    moe_position: int  # among the model's MoE layers; -1 without experts
    linears: dict[str, nn.Linear]

    @property
    def parameters(self) -> int:
        """Weights in scope, before anything is removed."""
        experts = self.moe.num_experts * self.moe.num_expert_parameters() if self.moe else 0
        return experts + sum(linear.weight.numel() for linear in self.linears.values())


def resolve(
    recipe: Recipe | None, settings: dict[str, Any], calibration: Any, statistics: Statistics | None
) -> Recipe:
    """The recipe that will run: ``recipe`` with ``settings`` over it, fit for the data there is."""
    explicit = set(settings)
    if recipe is None and calibration is False and statistics is None:
        # Without data the defaults that need it give way to those that do not; what was asked for is never replaced.
        if "criterion" not in explicit:
            settings = {**settings, "criterion": "similarity"}
        if "weight_method" not in explicit:
            settings = {**settings, "weight_method": "magnitude"}
    resolved = Recipe.from_dict(settings, "prune") if recipe is None else recipe.replace(**settings)
    if calibration is False and statistics is None and resolved.needs_statistics:
        raise ValueError(
            f"[prune] criterion={resolved.criterion!r}, similarity={resolved.similarity}, "
            f"weight_method={resolved.weight_method!r} and representative={resolved.representative!r} need calibration "
            "data; with calibration=False use criterion='similarity' or 'random', similarity=(1, 0), "
            "weight_method='magnitude' and representative='nearest' or 'mean'"
        )
    return resolved


def fit_to_model(recipe: Recipe, moe: MoEModel) -> Recipe:
    """Settles what depends on whether the model has experts and whether they are in scope."""
    refusals = [] if moe.layers or moe.schema is None else slicing_refusals(moe)
    if refusals and "experts" in recipe.scope:
        raise ValueError(
            f"[prune] the experts of this {moe.family} model cannot be pruned: {'; '.join(refusals[:3])}; "
            "scope=('attention', 'mlp') prunes its dense matrices"
        )
    if moe.layers and "experts" in recipe.scope:
        return recipe
    if moe.layers:
        if recipe.expert_sparsity:
            raise ValueError(
                f"[prune] expert_sparsity={recipe.expert_sparsity:g} needs 'experts' in scope {recipe.scope}"
            )
        return recipe.replace(expert_sparsity=0.0)
    if recipe.expert_sparsity or recipe.weight_method == "none":
        raise ValueError(
            f"[prune] {moe.family} has no routed experts, so stage 1 has nothing to remove; "
            "leave expert_sparsity out and stage 2 prunes its attention and MLP matrices"
        )
    scope = tuple(name for name in recipe.scope if name != "experts") or ("attention", "mlp")
    return recipe.replace(scope=scope, expert_sparsity=0.0)


def layers_in_scope(model: PreTrainedModel, moe: MoEModel, recipe: Recipe) -> list[ScopedLayer]:
    """The decoder layers with matrices in scope, in order."""
    layers: list[ScopedLayer] = []
    if "experts" in recipe.scope:
        layers = [
            ScopedLayer(moe_layer.index, moe_layer.name, moe_layer, i, {})
            for i, moe_layer in enumerate(moe.layers)
        ]
    by_index = {layer.index: layer for layer in reversed(layers)}
    others = [name for name in recipe.scope if name != "experts"]
    for name, linear in (decoder_linears(model, others) if others else {}).items():
        index = _decoder_index(name)
        if index not in by_index:
            prefix = name[: name.index(f".{index}.") + len(f".{index}")]
            by_index[index] = ScopedLayer(index, prefix, None, -1, {})
            layers.append(by_index[index])
        by_index[index].linears[name] = linear
    if not layers:
        raise ValueError(f"[prune] {moe.family} has no matrices in scope {', '.join(recipe.scope)}")
    return sorted(layers, key=lambda layer: layer.index)


def _decoder_index(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    if found is None:
        raise ValueError(f"[prune] {name} is not inside a numbered decoder layer")
    return int(found[1])


def check_request(moe: MoEModel, layers: Sequence[ScopedLayer], recipe: Recipe) -> None:
    """Refuses what cannot be met, before any long work."""
    for scoped in layers:
        if scoped.moe is not None and not scoped.moe.matrices and recipe.weight_method != "none":
            raise ValueError(
                f"[prune] {moe.family} stores the experts of {scoped.moe.name} in a layout whose single weights "
                "cannot be pruned; remove whole experts alone with weight_method='none'"
            )
    counts = [expert_pruning.uniform_count(layer, recipe) for layer in moe.layers]
    if any(count != layer.num_experts for count, layer in zip(counts, moe.layers, strict=True)):
        try:
            plan_slices(moe, counts)
        except ValueError as error:
            raise ValueError(
                f"{error}; expert_sparsity=0 leaves the experts and prunes weights alone"
            ) from error
    if recipe.per_layer == "global" and recipe.expert_share() > 0 and recipe.linkage == "star":
        groups = {layer.n_group for layer in moe.layers}
        if len(groups) > 1:
            raise ValueError(
                f"[prune] per_layer='global' needs the same routing groups in every layer, got {groups}"
            )
    if recipe.weight_method != "none" and recipe.nm is None:
        total = sum(layer.parameters for layer in layers)
        removed = sum(
            (layer.num_experts - count) * layer.num_expert_parameters()
            for layer, count in zip(moe.layers, counts, strict=True)
        )
        if recipe.per_layer == "uniform":
            stage2_sparsity(total, removed, recipe.sparsity)
    if recipe.nm is not None:
        for name, width in _input_widths(layers):
            if width % recipe.nm[1]:
                raise ValueError(f"[prune] pattern {recipe.pattern} needs input widths that are multiples of "
                                 f"{recipe.nm[1]}, but {name} has {width}")  # fmt: skip


def _input_widths(layers: Sequence[ScopedLayer]) -> Iterator[tuple[str, int]]:
    for layer in layers:
        for matrix in layer.moe.matrices if layer.moe else []:
            assert layer.moe is not None
            yield f"{layer.moe.experts_name}.{matrix.name}", matrix.expert(0).shape[1]
        for name, linear in layer.linears.items():
            yield name, linear.in_features


def stage2_sparsity(total: int, removed: int, sparsity: float) -> float:
    """Sparsity s of what stage 1 leaves, (S·P − P_removed)/(P − P_removed): S = 1 − (1 − S_structured)(1 − s)."""
    left = total - removed
    wanted = sparsity * total - removed
    # Experts come whole: an overshoot within the promised 0.1 points is met, not refused.
    if wanted < -1e-3 * total:
        raise ValueError(
            f"[prune] sparsity={sparsity:g} is below the {removed / total:.4g} of the weights that removing experts "
            "alone takes; lower expert_sparsity, raise sparsity, or use weight_method='none'"
        )
    return max(0.0, wanted / left)


def check_finite(layers: Sequence[ScopedLayer], tick: Callable[[int, int], None]) -> None:
    """Refuses NaN and Inf in any weight a decision reads, by name; ``tick`` is called with (done, total)."""
    for done, layer in enumerate(layers):
        tick(done, len(layers))
        named: list[tuple[str, torch.Tensor]] = [
            (f"{name}.weight", linear.weight) for name, linear in layer.linears.items()
        ]
        if layer.moe is not None:
            named += [(f"{layer.moe.experts_name}.{m.name}", m.parameter) for m in layer.moe.matrices]
            named.append((f"{layer.moe.name} router", layer.moe.router_weight))
        for name, tensor in named:
            if not bool(torch.isfinite(tensor.detach()).all()):
                raise ValueError(f"[prune] {name} holds NaN or Inf")
