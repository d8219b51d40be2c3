# SPDX-License-Identifier: Apache-2.0
"""The ``config.json`` of a pruned checkpoint: the old one with every name of the number of experts changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from stun_ext.checkpoint import mtp_tensors
from stun_ext.models.config_keys import is_expert_count_name
from stun_ext.streaming.layout import Layout
from stun_ext.streaming.parts import one_expert, renamed

_TENSOR = "weight"


def patched_config(
    config: Mapping[str, Any], layout: Layout, kept: Mapping[str, list[int]]
) -> dict[str, Any]:
    """A copy of a ``config.json`` that is true of the pruned checkpoint.

    Every field that holds the number of experts under any of its names is set, the class's own name and its aliases
    are added where they are missing, and lists of modules in ``quantization_config`` name the experts by their new
    numbers.

    Args:
        config: The old one.
        layout: What depends on the number of experts.
        kept: Block's name in the checkpoint -> the ids it keeps. Where they are not equally many, the config has the
            largest number, and ``per_layer_config`` those of the other layers.
    """
    count = max(len(ids) for ids in kept.values())
    new = copy.deepcopy(dict(config))
    _set_counts(new, layout.num_experts, count)
    for path in layout.config_paths:
        section = _section(new, path[:-1])
        if section is not None:
            section[path[-1]] = count
    for location, aliases in layout.aliases.items():
        section = _section(new, location)
        for alias, name in aliases.items():
            if section is not None and name in section:
                section[alias] = section[name]
    differing = {
        block.index: len(kept[block.name]) for block in layout.blocks if len(kept[block.name]) != count
    }
    if differing:
        section = _section(new, layout.config_paths[0][:-1])
        assert section is not None  # the counts are there
        per_layer = section.setdefault("per_layer_config", {})
        for index, number in sorted(differing.items()):
            fields = {path[-1]: number for path in layout.config_paths}
            per_layer[str(index)] = {**per_layer.get(str(index), {}), **fields}
    quantisation = new.get("quantization_config")
    if isinstance(quantisation, dict):
        new["quantization_config"] = _renumbered(quantisation, layout.num_experts, kept)
    return new


def without_layers(config: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The config without modules of multi-token prediction in the lists of ``quantization_config``.

    Args:
        config: The new config; it is not changed.
        old: The config that says which layers these are.
    """
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return config
    lists = {
        name: [item for item in value if not (isinstance(item, str) and mtp_tensors(old, [f"{item}."]))]
        for name, value in quantisation.items()
        if isinstance(value, list)
    }
    return {**config, "quantization_config": {**quantisation, **lists}}


def _set_counts(section: dict[str, Any], old: int, count: int) -> None:
    for name, value in section.items():
        if isinstance(value, dict):
            _set_counts(value, old, count)
        elif is_expert_count_name(name) and type(value) is int and value == old:
            section[name] = count


def _section(config: dict[str, Any], location: tuple[str, ...]) -> dict[str, Any] | None:
    section: Any = config
    for name in location:
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def _renumbered(value: Any, num_experts: int, kept: Mapping[str, list[int]]) -> Any:
    """The value with experts' modules in its lists under their new numbers, those of removed experts left out."""
    if isinstance(value, dict):
        return {name: _renumbered(item, num_experts, kept) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    items = []
    for item in value:
        part = one_expert(f"{item}.{_TENSOR}") if isinstance(item, str) else None  # lists name modules
        if part is not None and part.block in kept:
            numbers = {expert: number for number, expert in enumerate(kept[part.block])}
            new = renamed(f"{item}.{_TENSOR}", part, numbers, num_experts)
            if new is not None:
                items.append(new[: -len(_TENSOR) - 1])
        else:
            items.append(_renumbered(item, num_experts, kept))
    return items
