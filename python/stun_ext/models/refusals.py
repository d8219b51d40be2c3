# SPDX-License-Identifier: Apache-2.0
"""What keeps a model's experts from being sliced: reasons by tensor name, found before any change."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .config_keys import KeyPath, iter_configs
from .moe import MoELayer, MoEModel
from .schema import Schema, build_skeleton, named_tensors


def slicing_refusals(moe: MoEModel) -> list[str]:
    """Why experts cannot be removed from this model, each reason naming what is in the way.

    Values are read of integer tensors in MoE blocks only, never of weights.

    Args:
        moe: The analyzed model.
    """
    if moe.schema is None:
        return ["the model has no routed experts"]
    if moe.is_ragged:
        counts = ", ".join(str(layer.num_experts) for layer in moe.layers)
        return [
            f"its layers already have different numbers of experts ({counts}), so they cannot be pruned again"
        ]
    refusals = list(moe.schema.refusals)
    placed = {spec.name for layer in moe.layers for spec in layer.tensors}
    refusals += [
        f"{name}: is indexed by experts but belongs to no MoE block of a decoder layer"
        for name in moe.schema.tensors
        if name not in placed
    ]
    refusals += _mismatches(moe, moe.schema)
    if refusals:
        return refusals
    suspects = {}
    for layer in moe.layers:
        for name, tensor in _routing_tensors(layer):
            if not tensor.is_floating_point() and tensor.dtype != torch.bool:
                if _holds_expert_ids(layer, name, tensor):
                    refusals.append(
                        f"{name}: a table of expert ids, which would have to be chosen anew for fewer experts"
                    )
            elif name not in moe.schema.tensors:
                sizes = {spec.size(layer.num_experts) for spec in layer.tensors if spec.factor == 1}
                axes = [axis for axis, size in enumerate(tensor.shape) if size in sizes]
                if axes:
                    suspects[name] = axes
    refusals += [
        f"{name}: dimension {axis} has as many entries as there are experts, but does not follow the "
        "config's count"
        for name, axis in _unexplained(moe, moe.schema, suspects)
    ]
    return refusals


def _mismatches(moe: MoEModel, schema: Schema) -> list[str]:
    """The first tensor whose shape is not what class and config give: the model was changed after loading."""
    live = {name: tuple(tensor.shape) for name, tensor in named_tensors(moe.model)}
    for name in sorted(live.keys() | schema.shapes.keys()):
        if live.get(name) != schema.shapes.get(name):
            return [
                f"{name}: shape {live.get(name)} where {type(moe.model).__name__} with this config has "
                f"{schema.shapes.get(name)}"
            ]
    return []


def _routing_tensors(layer: MoELayer) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, with full names, of the block itself and of its children that hold expert-indexed tensors.

    Shared experts, norms and, where the block is a whole decoder layer, attention are left out: their sizes
    can equal the number of experts by coincidence.
    """
    depth = layer.name.count(".") + 1
    children = {spec.name.split(".")[depth] for spec in layer.tensors}
    for name, tensor in named_tensors(layer.block):
        if "." not in name or name.split(".")[0] in children:
            yield f"{layer.name}.{name}", tensor


def _holds_expert_ids(layer: MoELayer, name: str, tensor: torch.Tensor) -> bool:
    """Whether an integer tensor's values, not its shape, refer to experts."""
    if tensor.numel() < 2:
        return False
    indexed = any(spec.name == name for spec in layer.tensors)
    if tensor.is_meta:
        return not indexed
    low, high = int(tensor.min()), int(tensor.max())
    if indexed:  # a count per expert is fine, a permutation of the experts is not
        return torch.equal(
            tensor.flatten().sort().values.cpu(), torch.arange(tensor.numel(), dtype=tensor.dtype)
        )
    return low >= 0 and high < layer.num_experts


def _unexplained(moe: MoEModel, schema: Schema, suspects: dict[str, list[int]]) -> list[tuple[str, int]]:
    """The suspect dimensions that no other integer of the config explains.

    A hidden size equal to the number of experts is a coincidence: doubling it in the config changes the
    dimension. What no such field changes is taken to count experts.
    """
    left = {(name, axis) for name, axes in suspects.items() for axis in axes}
    if not left:
        return []
    sizes = {schema.shapes[name][axis] for name, axis in left}
    for path, value in _integer_fields(moe, schema):
        # Only sizes that the dimension could be made of are worth building a skeleton for.
        if not any(size % value == 0 or value % size == 0 for size in sizes):
            continue
        try:
            skeleton = build_skeleton(type(moe.model), moe.model.config, {path: 2 * value})
        except Exception:
            continue  # this field cannot be varied alone, so it explains nothing
        shapes = {name: tensor.shape for name, tensor in named_tensors(skeleton)}
        left = {
            (name, axis)
            for name, axis in left
            if name in shapes and len(shapes[name]) > axis and shapes[name][axis] == schema.shapes[name][axis]
        }
        if not left:
            return []
    return sorted(left)


def _integer_fields(moe: MoEModel, schema: Schema) -> list[tuple[KeyPath, int]]:
    """The config's integer fields above 1 that do not count experts, those likely to be sizes first."""
    fields = [
        ((*path, name), value)
        for path, config in iter_configs(moe.model.config)
        for name, value in vars(config).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1
    ]
    # A field whose name speaks of experts, and which is not a size, is a second count of them.
    fields = [
        (path, value)
        for path, value in fields
        if path not in schema.paths
        and not ("expert" in path[-1] and "size" not in path[-1] and "dim" not in path[-1])
    ]
    return sorted(fields, key=lambda item: not item[0][-1].endswith(("size", "dim", "heads", "rank")))
