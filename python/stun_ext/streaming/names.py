# SPDX-License-Identifier: Apache-2.0
"""Blocks of experts found by the names and shapes of stored tensors alone.

For families that Transformers does not know (Arctic) and layers that its classes leave out (multi-token prediction).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from stun_ext.models.config_keys import is_expert_count_name
from stun_ext.models.routing import read_groups, read_top_k
from stun_ext.streaming.layout import StoredBlock
from stun_ext.streaming.parts import ExpertAxis, OneExpert, Part, block_of, one_expert
from stun_ext.streaming.shards import StoredCheckpoint

# In a block, outside of its experts: what a router's tensors are called, and what every token passes through.
_ROUTER = re.compile(r"gate|router|expert|\bwg\b|score|statics|bias")
_DENSE = re.compile(r"shared|residual|_proj\b|\bmlp\b|norm")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_MTP = re.compile(r"(?:^|\.)(?:mtp|nextn)")


def sections(config: Mapping[str, Any]) -> Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """A ``config.json`` and every mapping in it, each with its path."""
    yield (), config
    for name, value in config.items():
        if isinstance(value, Mapping):
            for path, section in sections(value):
                yield (name, *path), section


def config_counts(config: Mapping[str, Any]) -> set[int]:
    """The numbers (> 1) of experts in a ``config.json``."""
    return {
        value
        for _, section in sections(config)
        for name, value in section.items()
        if is_expert_count_name(name) and type(value) is int and value > 1
    }


def layer_of(block: str, config: Mapping[str, Any], taken: int = 0) -> int:
    """The decoder layer's index in a block's name; after the last come those called "mtp"."""
    number = _NUMBER.search(block)
    last = next((s["num_hidden_layers"] for _, s in sections(config) if "num_hidden_layers" in s), 0)
    if _MTP.search(block):
        return int(last) + taken
    return int(number[1]) if number else 0


def routing(config: Mapping[str, Any], index: int) -> tuple[int, int, int]:
    """(top-k, groups, groups chosen per token) from the names of fields in a ``config.json``.

    Raises:
        ValueError: No field says how many experts a token chooses.
    """
    # A config's own "top_k" is the sampling parameter of generation.
    holders: list[Any] = [
        SimpleNamespace(**{k: v for k, v in section.items() if k != "top_k"})
        for _, section in sections(config)
    ]
    top_k = read_top_k(holders[:-1], holders[-1], index)
    if top_k is None:
        raise ValueError("[prune_checkpoint] no field of config.json says how many experts a token chooses")
    return (top_k, *read_groups(holders[:-1], holders[-1]))


def find_blocks(
    checkpoint: StoredCheckpoint, names: Iterable[str], num_experts: int | None = None
) -> list[tuple[str, int, str, dict[str, Part]]]:
    """Blocks with experts among the tensors `names`.

    Args:
        checkpoint: Where their shapes are.
        names: The tensors to look at.
        num_experts: How many experts each block must have; None: what each block's names or router say, which must be
            a number of experts in the config.

    Returns:
        (name, number of experts, router's tensor, parts) of each, in order of appearance.

    Raises:
        ValueError: A block without a router, with experts missing, or with a tensor that cannot be told apart.
    """
    by_block: dict[str, list[str]] = {}
    names = list(names)
    for name in names:
        block = block_of(name)
        if block is not None:
            by_block.setdefault(block, [])
    for name in names:
        for end in range(len(name)):
            if name[end] == "." and name[:end] in by_block:
                by_block[name[:end]].append(name)
    return [_block(checkpoint, block, members, num_experts) for block, members in by_block.items()]


def _block(
    checkpoint: StoredCheckpoint, block: str, names: list[str], num_experts: int | None
) -> tuple[str, int, str, dict[str, Part]]:
    single = {name: part for name in names if (part := one_expert(name)) is not None and part.block == block}
    legal = config_counts(checkpoint.config) if num_experts is None else {num_experts}
    if single:
        count = max(part.expert for part in single.values()) + 1
    else:
        rows = [checkpoint.tensor(n).shape[0] for n in names if _is_router(checkpoint, block, n)]
        count = rows[0] if rows else 0
    if count not in legal:
        raise ValueError(
            f"[prune_checkpoint] {block} has {count} experts by its tensors, the config has {sorted(legal)}"
        )
    parts: dict[str, Part] = dict(single)
    for name in names:
        if name not in single:
            axis = _axis(checkpoint, block, name, count)
            if axis is not None:
                parts[name] = axis
    check_experts(block, parts, count)
    return block, count, router_of(checkpoint, block, parts), parts


def _is_router(checkpoint: StoredCheckpoint, block: str, name: str) -> bool:
    inside, shape = name[len(block) + 1 :], checkpoint.tensor(name).shape
    return (
        len(shape) == 2 and not inside.startswith("experts.") and bool(_ROUTER.search(inside))
        and not _DENSE.search(inside)
    )  # fmt: skip


def _axis(checkpoint: StoredCheckpoint, block: str, name: str, count: int) -> ExpertAxis | None:
    inside, shape = name[len(block) + 1 :], checkpoint.tensor(name).shape
    if inside.startswith("experts."):
        if not shape or max(shape) == 1:
            return None  # one number for all experts
        if shape[0] % count:
            raise ValueError(
                f"[prune_checkpoint] {name}: shape {list(shape)} is not one slice for each of {count} experts"
            )
        return ExpertAxis(block, 0, shape[0] // count, in_experts=True)
    if count not in shape or _DENSE.search(inside) or not _ROUTER.search(inside):
        return None
    return ExpertAxis(block, shape.index(count))


def router_of(checkpoint: StoredCheckpoint, block: str, parts: Mapping[str, Part]) -> str:
    """The tensor among `parts` with one row per expert.

    Raises:
        ValueError: There is none.
    """
    found = [
        name
        for name, part in parts.items()
        if isinstance(part, ExpertAxis) and not part.in_experts and part.factor == 1
        for shape in [checkpoint.tensor(name).shape]
        if len(shape) == 2 and shape[1 - part.axis] > 1
    ]
    if not found:
        raise ValueError(f"[prune_checkpoint] {block} has experts, but no router with one row for each")
    return min(found, key=lambda name: (not name.endswith("weight"), name))


def check_experts(block: str, parts: Mapping[str, Part], count: int) -> None:
    """Raises ValueError, naming what is missing, unless every expert has the tensors that the others have."""
    leaves: dict[str, set[int]] = {}
    for part in parts.values():
        if isinstance(part, OneExpert):
            leaves.setdefault(part.leaf, set()).add(part.expert)
    for leaf, experts in leaves.items():
        missing = sorted(set(range(count)) - experts)
        if missing:
            raise ValueError(
                f"[prune_checkpoint] the checkpoint lacks {block}.experts.{missing[0]}.{leaf} "
                f"({len(missing)} of {count} experts have no {leaf})"
            )


def stored_block(
    checkpoint: StoredCheckpoint,
    found: tuple[str, int, str, dict[str, Part]],
    index: int,
    top: tuple[int, int, int],
) -> StoredBlock:
    """A block that `find_blocks` found, with its layer's index and (top-k, groups, groups per token)."""
    name, count, router, parts = found
    return StoredBlock(checkpoint, index, name, count, *top, router, parts)
