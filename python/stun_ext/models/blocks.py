# SPDX-License-Identifier: Apache-2.0
"""Which expert-indexed tensors belong together: the MoE blocks of the decoder layers, by tensor name."""

from __future__ import annotations

from collections.abc import Iterable

from .schema import ExpertTensor


def common_prefix(names: Iterable[str]) -> str:
    """The deepest module that contains all of the tensors with these names."""
    paths = [name.split(".")[:-1] for name in names]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def layer_index(name: str) -> int:
    """The decoder layer's index in the name of a module or tensor inside it."""
    prefix = _layer_prefix(name + ".")
    assert prefix is not None, name
    return int(prefix.rpartition(".")[2])


def _layer_prefix(name: str) -> str | None:
    """The part of a tensor's name up to its decoder layer, "model.layers.3"; None outside of layers."""
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return None


def moe_blocks(tensors: Iterable[ExpertTensor]) -> dict[str, list[ExpertTensor]]:
    """Expert-indexed tensors by MoE block: the smallest module that holds a router and its experts."""
    by_layer: dict[str, list[ExpertTensor]] = {}
    for spec in tensors:
        prefix = _layer_prefix(spec.name)
        if prefix is not None:
            by_layer.setdefault(prefix, []).append(spec)
    blocks: dict[str, list[ExpertTensor]] = {}
    for specs in by_layer.values():
        if _is_complete(specs):
            blocks.update(_split(specs))
    return blocks


def _is_complete(specs: list[ExpertTensor]) -> bool:
    return any(spec.holds_matrices for spec in specs) and any(not spec.holds_matrices for spec in specs)


def _split(specs: list[ExpertTensor]) -> dict[str, list[ExpertTensor]]:
    """One block, or several when its children are complete blocks (JetMoe: in attention and MLP)."""
    prefix = common_prefix(spec.name for spec in specs)
    children: dict[str, list[ExpertTensor]] = {}
    for spec in specs:
        children.setdefault(spec.name[len(prefix) + 1 :].split(".")[0], []).append(spec)
    complete = [child for child in children.values() if _is_complete(child)]
    if len(complete) < 2:
        return {prefix: specs}
    blocks = {}
    for child in complete:
        blocks.update(_split(child))
    return blocks
