# SPDX-License-Identifier: Apache-2.0
"""Finding the experts of a checkpoint: by its Transformers class where there is one, by names for the rest.

The class is built empty (on the meta device) with different numbers of experts, which tells what follows them; the
conversions with which Transformers loads a checkpoint tell which stored tensor becomes which of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from stun_ext.models import (
    MoELayer,
    MoEModel,
    StoredExperts,
    analyze,
    empty_model,
    plan_slices,
    stored_experts,
)
from stun_ext.models.config_keys import is_expert_count_name, iter_configs, per_layer_counts
from stun_ext.models.schema import ExpertTensor, named_tensors
from stun_ext.streaming import names as by_name
from stun_ext.streaming.layout import Layout, StoredBlock
from stun_ext.streaming.parts import ExpertAxis, OneExpert, Part, one_expert
from stun_ext.streaming.shards import StoredCheckpoint


@dataclass(frozen=True)
class FoundLayout:
    """The layout, and how to check that numbers of experts are possible.

    Attributes:
        layout: The layout.
        check_counts: Raises ValueError if the model's class cannot be built with so many experts in each block.
        experts: Gives the matrices of the blocks that the class has, which come first; None without a class.
    """

    layout: Layout
    check_counts: Callable[[Sequence[int]], None]
    experts: Callable[[], list[list[StoredExperts]]] | None = None


def find_layout(checkpoint: StoredCheckpoint, *, trust_remote_code: bool = False) -> FoundLayout:
    """Finds every block of experts.

    Args:
        checkpoint: The checkpoint.
        trust_remote_code: Whether the model's class may come from code in the checkpoint.

    Raises:
        ValueError: No experts; experts that cannot be removed; a tensor that is missing or does not fit. It is named.
    """
    family = str(checkpoint.config.get("model_type", "?"))
    known = family in CONFIG_MAPPING or (trust_remote_code and "auto_map" in checkpoint.config)
    if not known:
        return FoundLayout(_by_names(checkpoint, family), lambda counts: None)
    config = AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    if any(per_layer_counts(nested) for _, nested in iter_configs(config)):
        raise ValueError("[prune_checkpoint] the layers already have different numbers of experts")
    with empty_model(config, trust_remote_code=trust_remote_code) as skeleton:
        moe = analyze(skeleton)
        if not moe.layers or moe.schema is None:
            raise ValueError(
                f"[prune_checkpoint] this {family} model has no routed experts, so there is nothing to remove"
            )
        layout = _by_class(checkpoint, moe, family)
        plan_slices(moe, [layer.num_experts for layer in moe.layers])  # refuses what cannot be sliced at all
    return FoundLayout(
        layout, lambda counts: _check_counts(moe, counts), lambda: _class_matrices(checkpoint, moe)
    )


def _class_matrices(checkpoint: StoredCheckpoint, moe: MoEModel) -> list[list[StoredExperts]]:
    for layer in moe.layers:
        if not layer.matrices:
            raise ValueError(
                f"[prune_checkpoint] {moe.family} stores the experts of {layer.name} in a layout whose single weights "
                "cannot be pruned; remove whole experts alone with weight_method='none'"
            )
    shapes = {name: tensor.shape for name, tensor in checkpoint.items()}
    by_parameter = {stored.name: stored for stored in stored_experts(moe, shapes, check_interface=False)}
    return [
        [by_parameter[f"{layer.experts_name}.{matrix.name}"] for matrix in layer.matrices]
        for layer in moe.layers
    ]


def _check_counts(moe: MoEModel, counts: Sequence[int]) -> None:
    plan_slices(moe, counts[: len(moe.layers)])  # the blocks that the class leaves out come last


def _by_names(checkpoint: StoredCheckpoint, family: str) -> Layout:
    found = by_name.find_blocks(checkpoint, checkpoint.file_of)
    if not found:
        raise ValueError(
            f"[prune_checkpoint] Transformers does not know {family!r}, and no tensor lies below a module named "
            "'experts'"
        )
    blocks: list[StoredBlock] = []
    for one in found:
        index = by_name.layer_of(one[0], checkpoint.config, len(blocks))
        blocks.append(by_name.stored_block(checkpoint, one, index, by_name.routing(checkpoint.config, index)))
    counts = {block.num_experts for block in blocks}
    if len(counts) > 1:
        raise ValueError(f"[prune_checkpoint] layers have different numbers of experts: {sorted(counts)}")
    note = f"this Transformers does not know {family!r}: experts were found by the names of tensors"
    return Layout(sorted(blocks, key=lambda block: block.index), counts.pop(), family, notes=[note])


def _by_class(checkpoint: StoredCheckpoint, moe: MoEModel, family: str) -> Layout:
    assert moe.schema is not None
    live = dict(named_tensors(moe.model))
    mapping = get_model_conversion_mapping(moe.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    layer_of = {spec.name: layer for layer in moe.layers for spec in layer.tensors}
    router_of = {layer.router_tensor.name: layer.name for layer in moe.layers}
    parts: dict[str, dict[str, Part]] = {layer.name: {} for layer in moe.layers}
    routers: dict[str, str] = {}
    filled: set[str] = set()
    rest: dict[str, str] = {}
    for name, tensor in checkpoint.items():
        target, pattern = rename_source_key(
            name, renamings, converters, moe.model.base_model_prefix, meta_state_dict=live
        )
        if target not in layer_of:
            rest[name] = target
            continue
        layer = layer_of[target]
        spec = moe.schema.tensors[target]
        parts[layer.name][name] = _part(name, tensor.shape, layer, spec, converted=pattern is not None)
        filled.add(target)
        if target in router_of:
            routers[router_of[target]] = name
    rest = {name: target for name, target in rest.items() if target not in live}
    others = _quantised(checkpoint, moe, rest, parts, filled)
    blocks = []
    for layer in moe.layers:
        _check_filled(layer, filled, routers)
        found = (
            _stored_name(layer, parts[layer.name]),
            layer.num_experts,
            routers[layer.name],
            parts[layer.name],
        )
        by_name.check_experts(found[0], found[3], layer.num_experts)
        top = (layer.top_k, layer.n_group, layer.topk_group)
        blocks.append(by_name.stored_block(checkpoint, found, layer.index, top))
    # What the class leaves out has the same router: layers of multi-token prediction.
    extra = by_name.find_blocks(checkpoint, others, moe.num_experts)
    for position, one in enumerate(extra):
        index = by_name.layer_of(one[0], checkpoint.config, position)
        last = moe.layers[-1]
        blocks.append(
            by_name.stored_block(checkpoint, one, index, (last.top_k, last.n_group, last.topk_group))
        )
    aliases = {
        path: {
            alias: name
            for alias, name in nested.attribute_map.items()
            if is_expert_count_name(alias) and is_expert_count_name(name)
        }
        for path, nested in iter_configs(moe.model.config)
    }
    notes = [f"{one[0]} is pruned by its own router: {family} has it beside its layers" for one in extra]
    return Layout(
        blocks,
        moe.num_experts,
        family,
        list(moe.schema.paths),
        aliases,
        notes,
        may_differ=not extra,
        num_extra=len(extra),
    )


def _part(name: str, shape: Sequence[int], layer: MoELayer, spec: ExpertTensor, *, converted: bool) -> Part:
    """What a stored tensor that becomes (part of) an expert-indexed one of the class holds."""
    single = one_expert(name)
    if converted and single is not None:
        return single
    size = spec.size(layer.num_experts)
    axis = spec.axis if len(shape) > spec.axis and shape[spec.axis] == size else 0
    if not shape or shape[axis] != size:
        raise ValueError(
            f"[prune_checkpoint] {name}: shape {list(shape)} must have {size} entries along dimension {spec.axis}, "
            f"one for each of {layer.num_experts} experts"
        )
    in_experts = spec.holds_matrices or spec.name.startswith(layer.experts_name + ".")
    if layer.experts is layer.block and not spec.holds_matrices:
        in_experts = False
    return ExpertAxis(layer.name, axis, spec.factor, spec.extra, in_experts)


def _quantised(
    checkpoint: StoredCheckpoint,
    moe: MoEModel,
    rest: dict[str, str],
    parts: dict[str, dict[str, Part]],
    filled: set[str],
) -> list[str]:
    """Places tensors that stand beside, or instead of, an expert's weights: scales, packed blocks.

    Args:
        checkpoint: The checkpoint.
        moe: The empty model.
        rest: Stored name -> name by the class's conversions, of tensors that the class does not have.
        parts: By block of the class; added to.
        filled: Tensors of the class that the checkpoint has; added to.

    Returns:
        The tensors that belong to none of the blocks.
    """
    prefixes = {layer.experts_name + ".": layer for layer in moe.layers}
    stored = {part.block: layer for layer in moe.layers for part in parts[layer.name].values()
              if isinstance(part, OneExpert)}  # fmt: skip
    left = []
    for name, target in rest.items():
        single = one_expert(name)
        if single is not None and single.block in stored:
            parts[stored[single.block].name][name] = single
            continue
        prefix = next((p for p in prefixes if target.startswith(p)), None)
        if prefix is None or single is not None:
            left.append(name)
            continue
        layer, shape = prefixes[prefix], checkpoint.tensor(name).shape
        if not shape or max(shape) == 1:
            continue  # one number for all experts
        if shape[0] != layer.num_experts:
            raise ValueError(
                f"[prune_checkpoint] {name}: shape {list(shape)} is not one slice for each of "
                f"{layer.num_experts} experts"
            )
        parts[layer.name][name] = ExpertAxis(layer.name, 0, in_experts=True)
        filled.update(spec.name for spec in layer.tensors if target.startswith(spec.name))
    return left


def _check_filled(layer: MoELayer, filled: set[str], routers: dict[str, str]) -> None:
    if layer.name not in routers:
        raise ValueError(
            f"[prune_checkpoint] the checkpoint lacks the router of {layer.name}, {layer.router_tensor.name}"
        )
    for spec in layer.tensors:
        if spec.holds_matrices and spec.name not in filled:
            raise ValueError(f"[prune_checkpoint] the checkpoint has no tensor that becomes {spec.name}")


def _stored_name(layer: MoELayer, parts: dict[str, Part]) -> str:
    """The block's name in the checkpoint, where its experts' names tell, else in the class."""
    return next((part.block for part in parts.values() if isinstance(part, OneExpert)), layer.name)
