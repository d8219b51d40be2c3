# SPDX-License-Identifier: Apache-2.0
"""The ordinary linear layers of a decoder, by what they belong to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

SCOPES = ("attention", "mlp", "shared_experts")

_NEVER = re.compile(
    r"router|indexer|norm|embed|lm_head|gate|.*_gate"
)  # `gate`: a router; `gate_proj` is not matched
_ATTENTION = re.compile(r".*attn.*|.*attention.*")
_SHARED = re.compile(r"shared?_.*|.*_shared_.*")
_ROUTED = re.compile(r"experts")
_MLP = re.compile(r".*mlp.*|.*feed_?forward.*|.*ffn.*|fc\d|.*moe.*")


def decoder_linears(model: nn.Module, scope: Sequence[str]) -> dict[str, nn.Linear]:
    """The `nn.Linear` modules of the decoder layers that belong to `scope`, by full name, in module order.

    Routers, gates of shared experts, index networks of sparse attention, norms, embeddings and the head never
    count, nor do the mixers of state-space and convolution layers, which are no attention.

    Args:
        model: Any decoder of Transformers, dense or MoE.
        scope: Which of "attention" (projections of the attention), "mlp" (dense MLPs) and "shared_experts"
            (MLPs that every token of a MoE layer passes).

    Returns:
        Full module name -> module; empty when the model has none.

    Raises:
        ValueError: An unknown name in `scope`.
    """
    unknown = [name for name in scope if name not in SCOPES]
    if unknown:
        raise ValueError(f"[decoder_linears] scope must be of {', '.join(SCOPES)}; got {unknown[0]!r}")
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _scope_of(name) in scope
    }


def _scope_of(name: str) -> str | None:
    """The scope of the linear layer with this name; None for those that are never pruned."""
    parts = name.split(".")
    layer = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if layer is None:
        return None
    inside = parts[layer + 1 :]
    if any(_NEVER.fullmatch(part) for part in inside):
        return None
    for part in inside:
        if _ATTENTION.fullmatch(part):
            return "attention"
        if _SHARED.fullmatch(part):
            return "shared_experts"
        if _ROUTED.fullmatch(part):
            return None
    return "mlp" if any(_MLP.fullmatch(part) for part in inside) else None
