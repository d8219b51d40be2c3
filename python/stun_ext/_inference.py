# SPDX-License-Identifier: Apache-2.0
"""Running a model for what it says rather than to train it: evaluation mode and a small decoding loop."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

#: Cached and uncached logits of a right model differ by rounding (and, in 16 bits, by a rare routing flip);
#: a cache that is ignored or misplaced differs by about the spread of the logits.
_CACHE_TOLERANCE = 0.1


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in eval mode without gradients, and restore each module's own flag afterwards.

    ``torch.no_grad`` rather than ``inference_mode``: buffers that a model rebuilds on the way (rotary tables)
    would otherwise become inference tensors and break a later training step.
    """
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


def input_device(model: torch.nn.Module) -> torch.device:
    """Device of the token embeddings: where ``input_ids`` belong, also when layers lie on several devices."""
    return embedding_weight(model).device


def embedding_weight(model: torch.nn.Module) -> torch.Tensor:
    """Weight of the input embeddings, ``[vocabulary, hidden]``."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    assert isinstance(weight, torch.Tensor)
    return weight


def accepts(model: torch.nn.Module, keyword: str) -> bool:
    """Whether ``model.forward`` names ``keyword`` as a parameter."""
    return keyword in inspect.signature(model.forward).parameters


def decode(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor | None],
    *,
    use_cache: bool,
) -> torch.Tensor:
    """Continue unpadded prompts token by token.

    A loop of its own, not ``generate``: that merges the checkpoint's ``generation_config`` (sampling,
    penalties, length limits, end tokens) into whatever it is asked to do, and not every model class has it.

    Args:
        model: causal language model, in evaluation mode.
        input_ids: int64 ``[B, T]``, T >= 1, on the model's input device, no padding.
        max_new_tokens: number of steps.
        choose: maps ``(logits [B, V] of the last position, step)`` to the next ids int64 ``[B]``, or None to
            stop.
        use_cache: keep keys and values between steps (see `cache_is_sound`); else each step reruns the
            sequence.

    Returns:
        int64 ``[B, T + steps]``: the prompts and what was chosen.
    """
    extra: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    ids, cache = input_ids, None
    for step in range(max_new_tokens):
        if use_cache:
            fresh = ids if cache is None else ids[:, -1:]
            output = model(input_ids=fresh, past_key_values=cache, use_cache=True, **extra)
            cache = output.past_key_values
        else:
            output = model(input_ids=ids, use_cache=False, **extra)
        chosen = choose(output.logits[:, -1], step)
        if chosen is None:
            break
        ids = torch.cat([ids, chosen.to(ids.device)[:, None]], dim=1)
    return ids


def cache_is_sound(model: torch.nn.Module) -> bool:
    """Whether decoding with a cache gives what a full forward gives, tried on eight tokens.

    Some classes return no cache, ignore the one they are given, or need arguments that only their
    ``generate`` prepares. Any of these makes the answer False, and callers fall back to the slower uncached
    loop.
    """
    device, rows = input_device(model), embedding_weight(model).shape[0]
    ids = (torch.arange(8, device=device) * 7919 % rows)[None]
    full = model(input_ids=ids, use_cache=False).logits[0].float()
    try:
        output = model(input_ids=ids[:, :5], use_cache=True)
        steps = [output.logits[0, -1]]
        for position in range(5, 8):
            cache = output.past_key_values
            if cache is None:
                return False
            output = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            steps.append(output.logits[0, -1])
    except Exception:  # whatever a class raises, it only means that its cache needs care that we do not have
        return False
    want = full[4:]
    error = (torch.stack(steps).float() - want).square().mean().sqrt()
    spread = (want - want.mean(dim=-1, keepdim=True)).square().mean().sqrt()
    return bool(error <= _CACHE_TOLERANCE * spread)
