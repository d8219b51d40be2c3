# SPDX-License-Identifier: Apache-2.0
"""Calibration text drawn from the model itself, for callers who have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stun_ext._inference import cache_is_sound, decode, embedding_weight, evaluation_mode, input_device

#: Bound on what is held at once in keys, values and logits.
_SAMPLING_BYTES = 1 << 30


def sample_sequences(
    model: torch.nn.Module, count: int, length: int, seed: int, progress: Callable[[int, int], None] | None
) -> list[torch.Tensor]:
    """``count`` sequences of ``length`` ids, int64 on the CPU, drawn from the model at temperature 1."""
    device, vocabulary = input_device(model), embedding_weight(model).shape[0]
    # All draws are made beforehand, on the CPU: neither device nor grouping changes which one a token gets.
    uniform = torch.rand(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = _start_token(model, vocabulary)
    first = (uniform[:, 0] * vocabulary).long() if start is None else torch.full((count,), start)
    group = _sampling_group(model, count, length, vocabulary)
    sequences: list[torch.Tensor] = []
    with evaluation_mode(model):
        use_cache = cache_is_sound(model)
        for begin in range(0, count, group):
            draws = uniform[begin : begin + group].to(device)

            def choose(
                logits: torch.Tensor, step: int, draws: torch.Tensor = draws, begin: int = begin
            ) -> torch.Tensor:
                if progress is not None:
                    progress(begin * length + (step + 2) * draws.shape[0], count * length)
                # Inversion: the first id whose cumulative probability exceeds the draw.
                cumulative = (
                    logits[:, :vocabulary].float().softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
                )
                if not bool(torch.isfinite(cumulative[:, -1]).all()):
                    raise ValueError(
                        "[load_calibration] the model's logits are not finite, so no text can be sampled "
                        "from it; load it in bfloat16 or float32, or pass calibration data"
                    )
                wanted = draws[:, step + 1, None] * cumulative[:, -1:]
                return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_(max=vocabulary - 1)

            prompt = first[begin : begin + group, None].to(device)
            sequences += decode(model, prompt, length - 1, choose, use_cache=use_cache).cpu()
    return sequences


def _start_token(model: torch.nn.Module, vocabulary: int) -> int | None:
    config: Any = model.config
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("bos_token_id", "eos_token_id"):
        for holder in (getattr(model, "generation_config", None), config, text_config):
            value = getattr(holder, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and 0 <= value < vocabulary:
                return value
    return None


def _sampling_group(model: torch.nn.Module, count: int, length: int, vocabulary: int) -> int:
    """Sequences sampled side by side: as many as fit `_SAMPLING_BYTES` with their keys, values and logits."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None) or 1
    hidden = getattr(config, "hidden_size", None) or embedding_weight(model).shape[1]
    head_dim = getattr(config, "head_dim", None) or hidden // (
        getattr(config, "num_attention_heads", None) or 1
    )
    layers = getattr(config, "num_hidden_layers", None) or 1
    cache = 2 * layers * int(heads) * int(head_dim) * length * embedding_weight(model).element_size()
    return max(1, min(count, _SAMPLING_BYTES // (cache + 24 * vocabulary)))
