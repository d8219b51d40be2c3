# SPDX-License-Identifier: Apache-2.0
"""Decoding speed and bytes of a pruned model, with dense and with packed experts, on the machine at hand."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from stun_ext import ops
from stun_ext._inference import cache_is_sound, decode, embedding_weight, evaluation_mode
from stun_ext.experts_backend import is_packed, sparsify
from stun_ext.models import analyze, check_experts_interface

#: What Transformers itself can compute experts with on a CPU; the fastest is what packed experts are compared with.
BUILT_IN = ("eager", "batched_mm", "grouped_mm")


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """What `bench` measured.

    Attributes:
        dense_tokens_per_second: Of each built-in implementation that runs this model.
        packed_tokens_per_second: With packed experts.
        dense_bytes: Bytes of the experts' matrices, dense.
        packed_bytes: The same, packed.
        other_bytes: Bytes of all other parameters.
        same_tokens: Share of the greedy tokens that are the same with dense and packed experts: one rounded
            differently may change all that follow.
        batch_size: Sequences that were decoded at once.
        new_tokens: Tokens decoded for each.
        threads: Of torch (dense) and of the core (packed).
    """

    dense_tokens_per_second: Mapping[str, float]
    packed_tokens_per_second: float
    dense_bytes: int
    packed_bytes: int
    other_bytes: int
    same_tokens: float
    batch_size: int
    new_tokens: int
    threads: tuple[int, int]

    @property
    def dense_implementation(self) -> str:
        """The fastest of the built-in ones."""
        return max(self.dense_tokens_per_second, key=lambda name: self.dense_tokens_per_second[name])

    @property
    def speedup(self) -> float:
        """Tokens per second with packed experts over those of the fastest built-in implementation."""
        return self.packed_tokens_per_second / self.dense_tokens_per_second[self.dense_implementation]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            **dataclasses.asdict(self),
            "dense_implementation": self.dense_implementation,
            "speedup": self.speedup,
        }


def bench(
    model: PreTrainedModel,
    *,
    batch_size: int = 1,
    prompt_tokens: int = 8,
    new_tokens: int = 32,
    repeats: int = 3,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchResult:
    """Decodes greedily with the dense experts, packs them (as `sparsify`, in place), and decodes again.

    Args:
        model: A pruned model with dense experts, on the CPU; packed afterwards.
        batch_size: Sequences to decode at once.
        prompt_tokens: Random tokens that each starts with.
        new_tokens: Tokens to decode; the first one, with which the prompt is read, is not timed.
        repeats: The median of so many runs counts, after one that does not.
        progress: Called with (phase, done, total).

    Raises:
        ValueError: A number below 1 (``new_tokens``: below 2), or as `sparsify`.
    """
    least = {"batch_size": 1, "prompt_tokens": 1, "new_tokens": 2, "repeats": 1}
    given = {
        "batch_size": batch_size,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
    }
    for name, value in given.items():
        if value < least[name]:
            raise ValueError(f"[bench] {name} must be at least {least[name]}, got {value}")
    if is_packed(model):
        raise ValueError(
            "[bench] the experts are packed already: give the dense checkpoint (stun-ext unpack)"
        )
    check_experts_interface(analyze(model), "bench")
    generator = torch.Generator().manual_seed(0)
    rows = embedding_weight(model).shape[0]
    prompts = torch.randint(rows, (batch_size, prompt_tokens), generator=generator)
    total = sum(parameter.nbytes for parameter in model.parameters())
    rates: dict[str, float] = {}
    tokens: dict[str, torch.Tensor] = {}
    with evaluation_mode(model):
        for done, name in enumerate(BUILT_IN):
            if progress is not None:
                progress("decode, dense", done, len(BUILT_IN))
            try:
                model.set_experts_implementation(name)
                rates[name], tokens[name] = _decode_rate(model, prompts, new_tokens, repeats)
            except (ImportError, RuntimeError, NotImplementedError):
                continue  # not on this machine, or not in this dtype
        if progress is not None:
            progress("decode, dense", len(BUILT_IN), len(BUILT_IN))
        report = sparsify(model, progress=progress)
        packed_rate, packed_tokens = _decode_rate(model, prompts, new_tokens, repeats)
    best = max(rates, key=lambda name: rates[name])
    return BenchResult(
        dense_tokens_per_second=rates,
        packed_tokens_per_second=packed_rate,
        dense_bytes=report.dense_bytes,
        packed_bytes=report.packed_bytes,
        other_bytes=total - report.dense_bytes,
        same_tokens=float((tokens[best] == packed_tokens).float().mean()),
        batch_size=batch_size,
        new_tokens=new_tokens,
        threads=(torch.get_num_threads(), ops.num_threads()),
    )


def _decode_rate(
    model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, repeats: int
) -> tuple[float, torch.Tensor]:
    """Tokens per second, and the tokens."""
    use_cache = cache_is_sound(model)
    rates = []
    for _ in range(repeats + 1):
        times: list[float] = []

        def choose(logits: torch.Tensor, step: int, times: list[float] = times) -> torch.Tensor:
            times.append(time.perf_counter())
            return logits.argmax(dim=-1)

        tokens = decode(model, prompts, new_tokens, choose, use_cache=use_cache)
        rates.append(prompts.shape[0] * (len(times) - 1) / (times[-1] - times[0]))
    return statistics.median(rates[1:]), tokens[:, prompts.shape[1] :]
