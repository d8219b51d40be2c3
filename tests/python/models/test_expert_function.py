# SPDX-License-Identifier: Apache-2.0
"""Modules are recognised by what they compute, and computed alike by the core or not at all."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from stun_ext import ops
from stun_ext.expert_function import expert_function


def module(gate: Any = None, act: Any = None, *, is_concatenated: bool = True, **attributes: Any) -> Any:
    found = SimpleNamespace(
        has_gate=gate is not None, is_concatenated=is_concatenated, act_fn=act, **attributes
    )
    found._apply_gate = gate
    return found


def default(act: Any) -> Any:
    def apply(hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return act(gate) * up

    return apply


def gpt_oss(limit: float, alpha: float) -> Any:
    def apply(hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden[..., ::2].clamp(max=limit), hidden[..., 1::2].clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(gate * alpha)

    return apply


def limited_silu(limit: float) -> Any:
    def apply(hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)

    return apply


def limited_after(limit: float) -> Any:
    def apply(hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return functional.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)

    return apply


KNOWN = {
    "silu": module(default(ACT2FN["silu"])),
    "gelu": module(default(ACT2FN["gelu"])),
    "gelu_tanh": module(default(ACT2FN["gelu_pytorch_tanh"])),
    "gelu_new": module(default(ACT2FN["gelu_new"])),
    "quick_gelu": module(default(ACT2FN["quick_gelu"])),
    "relu": module(default(ACT2FN["relu"])),
    "no gate, relu2": module(act=ACT2FN["relu2"]),
    "no gate, silu": module(act=ACT2FN["silu"]),
    "limit": module(limited_silu(5.0), limit=5.0),
    "swiglu_limit": module(limited_silu(4.0), swiglu_limit=4),
    "gpt-oss": module(gpt_oss(7.0, 1.702), is_concatenated=False, limit=7.0, alpha=1.702),
    "gpt-oss of other numbers": module(gpt_oss(3.0, 0.9), is_concatenated=False, limit=3.0, alpha=0.9),
}
UNKNOWN = {
    "tanh": module(default(torch.tanh)),
    "limited after": module(limited_after(5.0), limit=5.0),
    "a limit that is named nowhere": module(limited_silu(5.0)),
    "norm": module(default(ACT2FN["silu"]), has_post_expert_norm=True),
    "two arguments": module(default(lambda gate, up: gate)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_core_computes_what_the_module_does(name):
    found = expert_function(KNOWN[name])
    assert found is not None
    n, rows = 40, 80 if KNOWN[name].has_gate else 40
    up, down = torch.eye(rows), torch.eye(n)  # hidden rows are the tokens' columns
    experts = ops.Experts([up], [down[:, :n].repeat(rows // n, 1)[:rows]], **found)
    x = 8 * torch.randn(6, rows, generator=torch.Generator().manual_seed(1))
    y = ops.expert_forward(x, torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1), experts)[:, :n]
    apply = KNOWN[name]._apply_gate if KNOWN[name].has_gate else KNOWN[name].act_fn
    torch.testing.assert_close(y.double(), apply(x.double()), rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_others_are_left_to_their_module(name):
    assert expert_function(UNKNOWN[name]) is None


def test_limits_that_are_none():
    odd = module(default(ACT2FN["silu"]), limit=None, alpha=math.inf)
    assert expert_function(odd) == {
        "activation": "silu",
        "is_gated": True,
        "is_interleaved": False,
        "alpha": 1.0,
        "limit": math.inf,
        "up_offset": 0.0,
    }
