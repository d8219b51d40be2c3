# SPDX-License-Identifier: Apache-2.0
"""Where a Transformers config keeps the number of routed experts, and how to change it.

The names are those of the config fields, not of model classes: a new family that follows the
naming needs no change here, and `schema.py` checks by experiment that a field found here really
decides the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig

# num_experts, num_local_experts, n_routed_experts, moe_num_experts, ... but not num_shared_experts,
# num_experts_per_tok or zero_expert_num, which count something else.
_EXPERT_COUNT_NAME = re.compile(r"(?:moe_)?(?:num|n)_(?:local_|routed_|moe_)?experts")

KeyPath = tuple[str, ...]
"""A field of a config: attribute names from the root config down: ``("ffn_config", "moe_num_experts")``."""


def is_expert_count_name(name: str) -> bool:
    """Whether a config field of this name holds a number of routed experts."""
    return _EXPERT_COUNT_NAME.fullmatch(name) is not None


def iter_configs(config: PreTrainedConfig) -> Iterator[tuple[KeyPath, PreTrainedConfig]]:
    """Yields the config and, depth first, every config nested in it, each with its path."""
    yield (), config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            for path, nested in iter_configs(value):
                yield (name, *path), nested


def nested_config(config: PreTrainedConfig, location: KeyPath) -> PreTrainedConfig:
    """The config found by following attribute names; `config` itself for the empty path."""
    found = config
    for name in location:
        found = vars(found)[name]
    return found


def get_count(config: PreTrainedConfig, path: KeyPath) -> int:
    """The expert count stored at `path`, read past the per-layer access check of Transformers."""
    return int(vars(nested_config(config, path[:-1]))[path[-1]])


def set_count(config: PreTrainedConfig, path: KeyPath, count: int) -> None:
    """Stores an expert count at `path`."""
    setattr(nested_config(config, path[:-1]), path[-1], count)


def expert_count_paths(config: PreTrainedConfig) -> list[KeyPath]:
    """Every field of the config, nested ones included, that may hold a number (> 1) of routed experts.

    Aliases (`attribute_map`) are not listed: Transformers stores one name and maps the others to it.
    """
    return [
        (*path, name)
        for path, nested in iter_configs(config)
        for name, value in vars(nested).items()
        if is_expert_count_name(name) and isinstance(value, int) and not isinstance(value, bool) and value > 1
    ]


def per_layer_overrides(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """The config's `per_layer_config` as plain data, layer index to fields; empty when it has none."""
    if not config.is_heterogeneous:
        return {}
    return {
        int(layer): dict(fields) for layer, fields in config.to_dict().get("per_layer_config", {}).items()
    }


def per_layer_counts(config: PreTrainedConfig) -> dict[int, int]:
    """Layer index to expert count, for the layers whose `per_layer_config` overrides the expert count."""
    counts = {}
    for layer, fields in per_layer_overrides(config).items():
        values = {int(value) for name, value in fields.items() if is_expert_count_name(name)}
        if len(values) > 1:
            raise ValueError(
                f"[per_layer_config] layer {layer} has contradicting expert counts {sorted(values)}"
            )
        if values:
            counts[layer] = values.pop()
    return counts


def _set_overrides(config: PreTrainedConfig, overrides: dict[int, dict[str, Any]]) -> None:
    config.per_layer_config = None
    if overrides:
        config.per_layer_config = dict(overrides.items())


def set_per_layer_counts(config: PreTrainedConfig, names: list[str], counts: Mapping[int, int]) -> None:
    """Writes expert counts that differ between layers into `config.per_layer_config`.

    Overrides of other fields stay. The fields `names` of the config itself keep the largest count (the caller
    sets it), and stay readable: Transformers otherwise raises when a field that varies per layer is read
    globally.

    Args:
        config: The config that owns the expert count (changed in place).
        names: The names of its expert-count fields.
        counts: Decoder layer index to expert count; layers left out have the config's own count.
    """
    overrides = per_layer_overrides(config)
    for fields in overrides.values():
        for name in [name for name in fields if is_expert_count_name(name)]:
            del fields[name]
    for layer, count in counts.items():
        overrides.setdefault(layer, {}).update(dict.fromkeys(names, count))
    left = {layer: fields for layer, fields in sorted(overrides.items()) if fields}
    _set_overrides(config, left)
    if counts:
        config.allow_global_per_layer_attribute_access = True


@contextmanager
def without_per_layer_counts(config: PreTrainedConfig) -> Iterator[None]:
    """Within the context, no nested config has expert counts that vary per layer; restored afterwards.

    Stock model classes build every layer from the config itself, which then gives the largest count.
    """
    saved = [
        (nested, per_layer_overrides(nested))
        for _, nested in iter_configs(config)
        if per_layer_counts(nested)
    ]
    for nested, _ in saved:
        set_per_layer_counts(nested, [], {})
    try:
        yield
    finally:
        for nested, overrides in saved:
            _set_overrides(nested, overrides)
