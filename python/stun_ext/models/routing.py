# SPDX-License-Identifier: Apache-2.0
"""How a layer's router chooses experts: top-k and groups, and the expert counts they allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig

from .moe import MoELayer, RoutedLayer

# Names that model code and configs use for one thing; the module's own attribute wins over the config's.
_TOP_K = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
_NUM_GROUPS = ("n_group", "num_group", "n_groups", "num_expert_group", "num_expert_groups")
_TOP_K_GROUPS = ("topk_group", "top_k_group", "topk_groups", "num_limited_groups")


def _read(holders: Iterable[object], names: Sequence[str], layer_index: int = 0) -> int | None:
    for holder in holders:
        for name in names:
            if name == "top_k" and isinstance(holder, PreTrainedConfig):
                continue  # there it is the sampling parameter of generation
            value = getattr(holder, name, None)
            if isinstance(value, (list, tuple)) and layer_index < len(value):
                value = value[layer_index]
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def read_top_k(modules: Sequence[object], config: object, layer_index: int) -> int | None:
    """The number of experts per token; None when neither the modules nor the config say.

    Args:
        modules: The layer's MoE block and router modules; any objects with attributes will do.
        config: The text config. A list (one value per layer, as Hunyuan's `moe_topk` can be) is indexed by
            the layer.
        layer_index: The decoder layer's index.
    """
    return _read((*modules, config), _TOP_K, layer_index)


def read_groups(modules: Sequence[object], config: object) -> tuple[int, int]:
    """(number of expert groups, groups chosen per token) of group-limited routing; (1, 1) without it."""
    if any(getattr(module, "topk_method", None) == "greedy" for module in modules):
        return 1, 1  # DeepSeek-V2 ignores its groups under this method
    n_group = _read((*modules, config), _NUM_GROUPS) or 1
    if n_group == 1:
        return 1, 1
    return n_group, _read((*modules, config), _TOP_K_GROUPS) or 1


def legal_expert_counts(layer: RoutedLayer, multiple: int = 1) -> list[int]:
    """The expert counts a layer can be reduced to, ascending, its present count last.

    Legal is K >= top-k and K >= 2. With group-limited routing also K divisible by the number of groups, at
    least 2 experts in a group (DeepSeek-V3 scores a group by its two best), and enough experts in the chosen
    groups for top-k.

    Args:
        layer: The layer.
        multiple: Counts must also be divisible by this (the present count is always listed).

    Returns:
        Counts in [1, layer.num_experts].

    Raises:
        ValueError: `multiple` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"[legal_expert_counts] multiple must be at least 1, got {multiple}")
    counts = [
        count
        for count in range(1, layer.num_experts)
        if count % multiple == 0 and _illegal(layer, count) is None
    ]
    return [*counts, layer.num_experts]


def check_count(layer: MoELayer, count: int) -> None:
    """Raises ValueError, naming the layer and the legal counts, unless `count` experts are legal there."""
    reason = None
    if not 1 <= count <= layer.num_experts:
        reason = f"must be in [1, {layer.num_experts}]"
    elif count < layer.num_experts:
        reason = _illegal(layer, count)
    if reason is not None:
        legal = ", ".join(map(str, legal_expert_counts(layer)))
        raise ValueError(f"[plan_slices] {layer.name}: {count} experts: {reason}; legal are {legal}")


def _illegal(layer: RoutedLayer, count: int) -> str | None:
    if count < layer.top_k:
        return f"fewer than the {layer.top_k} experts each token chooses"
    if count < 2:
        return "a router needs at least 2 experts"
    if layer.n_group > 1:
        if count % layer.n_group != 0:
            return f"not divisible by the {layer.n_group} routing groups"
        in_group = count // layer.n_group
        if in_group < 2:
            return f"fewer than 2 experts in each of the {layer.n_group} routing groups"
        if layer.topk_group * in_group < layer.top_k:
            return (
                f"{layer.topk_group} chosen groups of {in_group} experts hold fewer than the {layer.top_k} "
                "experts each token chooses"
            )
    return None


def check_groups(layer: MoELayer, kept: Sequence[int]) -> None:
    """Raises ValueError unless `kept` takes equally many experts of each routing group, in group order."""
    if layer.n_group == 1:
        return
    old, new = layer.num_experts // layer.n_group, len(kept) // layer.n_group
    for position, expert in enumerate(kept):
        if expert // old != position // new:
            raise ValueError(
                f"[SlicePlan.apply] {layer.name}: expert {expert} of routing group {expert // old} would "
                f"be in group {position // new}; keep {new} experts of each of the {layer.n_group} groups, "
                "in group order"
            )
