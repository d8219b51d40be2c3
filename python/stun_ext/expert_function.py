# SPDX-License-Identifier: Apache-2.0
"""What an experts module computes between its projections, in the terms of `ops.Experts`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

_PHI: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "silu": lambda z, alpha: z * torch.sigmoid(alpha * z),
    "gelu": lambda z, _: functional.gelu(z),
    "gelu_tanh": lambda z, _: functional.gelu(z, approximate="tanh"),
    "relu": lambda z, _: torch.relu(z),
    "relu_squared": lambda z, _: torch.relu(z) ** 2,
}
_QUICK_GELU = 1.702
_LIMITS, _ALPHAS = ("limit", "swiglu_limit"), ("alpha", "swiglu_alpha")


def expert_function(module: Any) -> dict[str, Any] | None:
    """The keywords of `ops.Experts` for this module, or None if the core has no such function.

    Families write their gates in many ways, so that a module is known by what it computes: its own function is called
    with float64 numbers, beyond its limits, too, and compared with each of the core's.
    """
    if getattr(module, "has_post_expert_norm", False):
        return None
    is_gated, is_interleaved = bool(module.has_gate), not module.is_concatenated
    z = torch.cat([torch.linspace(-9, 9, 31, dtype=torch.float64), torch.tensor([-60.0, 60.0]).double()])
    gate, up = z.repeat_interleave(len(z)), z.repeat(len(z))
    try:
        if is_gated:
            hidden = torch.stack([gate, up], -1).flatten() if is_interleaved else torch.cat([gate, up])
            found = module._apply_gate(hidden[None])[0]
        else:
            found = module.act_fn(z[None])[0]
    except (RuntimeError, TypeError, AttributeError):
        return None
    for activation, limit, alpha, offset in itertools.product(
        _PHI,
        (math.inf, *_numbers(module, _LIMITS)),
        (1.0, _QUICK_GELU, *_numbers(module, _ALPHAS)),
        (0.0, 1.0),
    ):
        phi = _PHI[activation]
        expected = (
            phi(gate.clamp(max=limit), alpha) * (up.clamp(-limit, limit) + offset)
            if is_gated
            else phi(z, alpha)
        )
        if found.shape == expected.shape and torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-9):
            return {
                "activation": activation,
                "is_gated": is_gated,
                "is_interleaved": is_interleaved and is_gated,
                "alpha": alpha,
                "limit": limit,
                "up_offset": offset,
            }
    return None


def _numbers(module: Any, names: tuple[str, ...]) -> list[float]:
    values = (getattr(module, name, None) for name in names)
    return [float(value) for value in values if isinstance(value, int | float) and 0 < value < math.inf]
