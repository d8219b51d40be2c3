# SPDX-License-Identifier: Apache-2.0
"""Removing experts from a model in memory: a plan that refuses before anything is touched, then the cut."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from .config_keys import iter_configs, nested_config, set_count, set_per_layer_counts
from .moe import MoELayer, MoEModel
from .refusals import slicing_refusals
from .routing import check_count, check_groups
from .schema import ExpertTensor, Schema, build_skeleton, named_tensors


class SlicePlan:
    """A checked way to keep `counts[l]` experts in layer l; see `plan_slices`.

    Attributes:
        moe: The analyzed model.
        counts: Experts to keep, one number per MoE layer.
        ragged: Whether the numbers differ between layers.
    """

    def __init__(self, moe: MoEModel, schema: Schema, counts: Sequence[int]) -> None:
        self.moe = moe
        self.counts = tuple(counts)
        self.ragged = len(set(counts)) > 1
        self._schema = schema
        self._applied = False

    def apply(
        self,
        kept: Sequence[Sequence[int]],
        members: Sequence[Mapping[int, Sequence[int]]] | None = None,
    ) -> None:
        """Cuts the model in place; all arguments are checked before the first change.

        Every expert-indexed tensor of a layer is reordered to `kept` (router rows, biases, correction biases
        and scales included), parameters are registered anew with their requires_grad, device and dtype
        (gradients are dropped), module attributes that hold counts and the config are set, and the `MoEModel`
        is updated. With different counts the config gets `per_layer_config`, and its expert count is the
        largest.

        Args:
            kept: For each MoE layer, the ids of the experts to keep in their new order; with group-limited
                routing equally many of each group, in group order.
            members: For each MoE layer, kept id -> ids of the experts whose mean it becomes (computed in
                float32 or better, cast back). Experts not listed are copied exactly.

        Raises:
            ValueError: Wrong number of ids, an id twice or out of range, groups mixed, or the plan was
                applied already. Nothing has been changed.
        """
        layers = self.moe.layers
        if self._applied:
            raise ValueError("[SlicePlan.apply] this plan has been applied already; analyze the model again")
        means: Sequence[Mapping[int, Sequence[int]]] = [{} for _ in layers] if members is None else members
        if len(kept) != len(layers) or len(means) != len(layers):
            raise ValueError(
                f"[SlicePlan.apply] kept and members must have one entry for each of the {len(layers)} MoE "
                f"layers, got {len(kept)} and {len(means)}"
            )
        for layer, count, ids, groups in zip(layers, self.counts, kept, means, strict=True):
            _check_kept(layer, count, ids, groups)
        self._applied = True

        with torch.no_grad():
            for layer, ids, groups in zip(layers, kept, means, strict=True):
                _slice_layer(self.moe.model, layer, list(ids), groups)
        for layer, count in zip(layers, self.counts, strict=True):
            layer.num_experts = count
        self._set_attributes()
        self._set_configs()
        self._schema.set_num_experts(max(self.counts))
        self.moe.num_experts = max(self.counts)

    def num_removed_parameters(self) -> int:
        """Parameters that `apply` will take away: experts with their router rows, biases and scales."""
        removed = 0
        for layer, count in zip(self.moe.layers, self.counts, strict=True):
            tensors = {
                id(tensor): (tensor, spec)
                for spec in layer.tensors
                for tensor in [_get(self.moe.model, spec.name)]
            }
            for tensor, spec in tensors.values():
                if isinstance(tensor, nn.Parameter):
                    entries = tensor.numel() // tensor.shape[spec.axis]
                    removed += entries * (spec.size(layer.num_experts) - spec.size(count))
        return removed

    def _count_of(self, module_name: str) -> int:
        """The expert count that holds for a module: its MoE layer's, or the model's."""
        best, count = -1, max(self.counts)
        for layer, layer_count in zip(self.moe.layers, self.counts, strict=True):
            inside = module_name == layer.name or module_name.startswith(layer.name + ".")
            if inside and len(layer.name) > best:
                best, count = len(layer.name), layer_count
        return count

    def _set_attributes(self) -> None:
        for rule in self._schema.attributes:
            module = self.moe.model.get_submodule(rule.module)
            if hasattr(module, rule.name):
                setattr(module, rule.name, rule.value(self._count_of(rule.module)))

    def _set_configs(self) -> None:
        model = self.moe.model
        _write_counts(model.config, self._schema, self.moe.layers, self.counts)
        # Modules may hold configs of their own, copied from the model's.
        seen = {id(config) for _, config in iter_configs(model.config)}
        for name, module in model.named_modules():
            config = getattr(module, "config", None)
            if isinstance(config, PreTrainedConfig) and id(config) not in seen:
                seen.add(id(config))
                for path in self._schema.paths:
                    if path[-1] in vars(config):
                        setattr(config, path[-1], self._count_of(name))


def _write_counts(
    config: PreTrainedConfig, schema: Schema, layers: Sequence[MoELayer], counts: Sequence[int]
) -> None:
    """Sets the expert counts in a model's config; those that differ from the largest per layer."""
    for path in schema.paths:
        set_count(config, path, max(counts))
    per_layer = {
        layer.index: count for layer, count in zip(layers, counts, strict=True) if count != max(counts)
    }
    if per_layer:
        names = [path[-1] for path in schema.paths]
        set_per_layer_counts(nested_config(config, schema.paths[0][:-1]), names, per_layer)


def plan_slices(moe: MoEModel, counts: Sequence[int]) -> SlicePlan:
    """Checks that a model can be cut to `counts` experts per layer; changes nothing, reads no weights.

    Args:
        moe: The analyzed model.
        counts: The number of experts to keep in each MoE layer (see `legal_expert_counts`).

    Returns:
        A plan whose `apply` does it.

    Raises:
        ValueError: The model cannot be sliced (the message names the tensor or attribute in the way), a count
            is illegal for its layer, counts differ in a model whose config cannot say so, or the model's
            class builds something else than the plan from the new config.
    """
    schema = moe.schema
    if schema is None:
        raise ValueError(
            "[plan_slices] the model has no routed experts: only weights can be pruned (stage 2)"
        )
    if len(counts) != len(moe.layers):
        raise ValueError(
            f"[plan_slices] counts must have {len(moe.layers)} entries, one per MoE layer, got {len(counts)}"
        )
    refusals = slicing_refusals(moe)
    if refusals:
        raise ValueError(
            f"[plan_slices] experts cannot be removed from this {moe.family} model: {'; '.join(refusals[:3])}"
        )
    for layer, count in zip(moe.layers, counts, strict=True):
        check_count(layer, count)
    plan = SlicePlan(moe, schema, counts)
    if plan.ragged:
        _check_ragged(moe, schema, counts)
    for rule in schema.attributes:
        if rule.value(plan._count_of(rule.module)) is None:
            raise ValueError(
                f"[plan_slices] {rule.module}.{rule.name} would not be an integer with "
                f"{plan._count_of(rule.module)} experts"
            )
    _check_rebuild(moe, schema, counts)
    return plan


def _check_ragged(moe: MoEModel, schema: Schema, counts: Sequence[int]) -> None:
    owners = {path[:-1] for path in schema.paths}
    config = nested_config(moe.model.config, schema.paths[0][:-1])
    if len(owners) != 1 or not hasattr(config, "num_hidden_layers"):
        fields = ", ".join(moe.expert_count_keys)
        raise ValueError(
            f"[plan_slices] counts must be equal in all layers: the config field {fields} cannot vary per "
            f"layer, got {list(counts)}"
        )
    by_index: dict[int, int] = {}
    for layer, count in zip(moe.layers, counts, strict=True):
        if by_index.setdefault(layer.index, count) != count:
            raise ValueError(
                f"[plan_slices] decoder layer {layer.index} has several MoE blocks, which must keep the same "
                f"number of experts, got {by_index[layer.index]} and {count}"
            )


def _check_rebuild(moe: MoEModel, schema: Schema, counts: Sequence[int]) -> None:
    """Does with the config what saving and loading will do, builds the class from it and compares shapes.

    The class is built with the largest count, as `from_pretrained` of a ragged checkpoint does too.
    """
    model_class, count = type(moe.model), max(counts)
    try:
        config = copy.deepcopy(moe.model.config)
        _write_counts(config, schema, moe.layers, counts)
        skeleton = build_skeleton(model_class, type(config).from_dict(config.to_diff_dict()), {})
    except Exception as error:
        raise ValueError(
            f"[plan_slices] {model_class.__name__} and its config do not accept {list(counts)} experts: "
            + " ".join(str(error).split())
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(skeleton)}
    for name in sorted(shapes.keys() | schema.shapes.keys()):
        planned = schema.shape(name, count) if name in schema.shapes else None
        if shapes.get(name) != planned:
            raise ValueError(
                f"[plan_slices] with {count} experts {model_class.__name__} builds {name} as "
                f"{shapes.get(name)}, the plan has {planned}"
            )


def _check_kept(
    layer: MoELayer, count: int, kept: Sequence[int], members: Mapping[int, Sequence[int]]
) -> None:
    def fail(text: str) -> None:
        raise ValueError(f"[SlicePlan.apply] {layer.name}: {text}")

    if len(kept) != count:
        fail(f"kept must have {count} expert ids, got {len(kept)}")
    if len(set(kept)) != len(kept) or not all(0 <= expert < layer.num_experts for expert in kept):
        fail(f"kept must be different expert ids in [0, {layer.num_experts - 1}], got {list(kept)}")
    check_groups(layer, kept)
    for expert, group in members.items():
        if expert not in kept:
            fail(f"members has expert {expert}, which is not kept")
        if (
            not group
            or len(set(group)) != len(group)
            or not all(0 <= other < layer.num_experts for other in group)
        ):
            fail(
                f"members of expert {expert} must be different expert ids in [0, {layer.num_experts - 1}], "
                f"got {list(group)}"
            )


def _slice_layer(
    model: nn.Module, layer: MoELayer, kept: list[int], members: Mapping[int, Sequence[int]]
) -> None:
    """Replaces a layer's expert-indexed tensors, one at a time; tensors tied to each other stay tied."""
    tied: dict[int, list[ExpertTensor]] = {}
    for spec in layer.tensors:
        tied.setdefault(id(_get(model, spec.name)), []).append(spec)
    for specs in tied.values():
        old = _get(model, specs[0].name)
        new = _slice(old.detach(), specs[0], layer.num_experts, kept, members)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for spec in specs:
            module_name, _, name = spec.name.rpartition(".")
            module = model.get_submodule(module_name)
            if isinstance(new, nn.Parameter):
                module._parameters[name] = new
            else:
                module._buffers[name] = new


def _get(model: nn.Module, name: str) -> torch.Tensor:
    module_name, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(module_name), leaf)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _slice(
    old: torch.Tensor,
    spec: ExpertTensor,
    num_experts: int,
    kept: list[int],
    members: Mapping[int, Sequence[int]],
) -> torch.Tensor:
    """A new tensor with the kept experts' entries; means of `members`, if it is floating point."""
    new = old.index_select(spec.axis, spec.index(torch.tensor(kept), num_experts).to(old.device))
    if not old.is_floating_point():
        return new
    wide = torch.promote_types(old.dtype, torch.float32)
    for position, expert in enumerate(kept):
        group = members.get(expert, (expert,))
        if list(group) != [expert]:
            parts = [old.narrow(spec.axis, other * spec.factor, spec.factor).to(wide) for other in group]
            mean = torch.stack(parts).mean(dim=0)
            new.narrow(spec.axis, position * spec.factor, spec.factor).copy_(mean)
    return new
