# SPDX-License-Identifier: Apache-2.0
"""Tiny models and the statistics of a pass by brute force: one token, one expert at a time, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        "num_hidden_layers": 3,
        "intermediate_size": 20,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "nemotron_h": {
        "layers_block_type": ["moe", "attention", "moe"],
        "head_dim": 8,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "mamba_num_heads": 2,
        "mamba_head_dim": 8,
    },
    "llama4_text": {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "intermediate_size_mlp": 24,
        "num_local_experts": 4,
        "attention_chunk_size": 16,
    },
    "llama": {"num_hidden_layers": 2, "intermediate_size": 20},
}


def tiny_model(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model whose biases and correction biases are not zero, and large enough for clamps to bite."""
    config = CONFIG_MAPPING[family](**{**_COMMON, **_FAMILIES[family], **changes})
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "rotary" in name or not tensor.is_floating_point():
                continue
            scale = 0.2 if "correction_bias" in name else 1.5 if "bias" in name else 0.4
            shift = 1.0 if "norm" in name else 0.0
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + shift)
    if dtype == torch.float64 and family != "llama":
        model.set_experts_implementation("batched_mm")  # the default one has no float64
    return model.to(dtype)


def tiny_batches(seed: int = 1, vocabulary: int = 64) -> list[dict[str, torch.Tensor]]:
    """Three batches: none padded, padded on the right, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    shapes, lengths = [(2, 7), (3, 6), (2, 5)], [None, [6, 2, 4], [3, 5]]
    batches = []
    for (rows, columns), real in zip(shapes, lengths, strict=True):
        batch = {"input_ids": torch.randint(vocabulary, (rows, columns), generator=generator)}
        if real is not None:
            positions = torch.arange(columns)
            mask = positions < torch.tensor(real)[:, None]
            batch["attention_mask"] = (mask if len(batches) == 1 else mask.flip(1)).long()
        batches.append(batch)
    return batches


@dataclass
class Call:
    """What one experts module was given in one stock forward pass, and which tokens are text."""

    hidden: torch.Tensor
    index: torch.Tensor
    gate: torch.Tensor
    real: torch.Tensor


def record_calls(
    model: PreTrainedModel, names: Iterable[str], batches: list[dict[str, torch.Tensor]]
) -> dict[str, list[Call]]:
    """The arguments of every experts module of the stock model, by plain hooks."""
    calls: dict[str, list[Call]] = {name: [] for name in names}
    real = torch.empty(0)
    with contextlib.ExitStack() as stack:
        for name, found in calls.items():

            def hook(module: nn.Module, args: tuple[torch.Tensor, ...], found: list[Call] = found) -> None:
                found.append(Call(*(x.detach().cpu().clone() for x in args), real))

            stack.callback(model.get_submodule(name).register_forward_pre_hook(hook).remove)
        model.eval()
        for batch in batches:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
            with torch.no_grad():
                model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
    return calls


def run_expert(
    family: str, experts: nn.Module, expert: int, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input of the down projection, output) of one expert for one token, written out family by family."""
    p = {
        name: parameter.detach()[expert].double().cpu()
        for name, parameter in experts.named_parameters(recurse=False)
    }
    x = x.double()
    if family == "gpt_oss":
        both = x @ p["gate_up_proj"] + p["gate_up_proj_bias"]
        gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
        inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        return inner, inner @ p["down_proj"] + p["down_proj_bias"]
    if family == "nemotron_h":
        inner = (p["up_proj"] @ x).clamp(min=0).square()
    else:
        both = p["gate_up_proj"] @ x
        gate, up = both[: len(both) // 2], both[len(both) // 2 :]
        inner = gate * torch.sigmoid(gate) * up
    return inner, p["down_proj"] @ inner


def brute_force(
    family: str,
    experts: nn.Module,
    num_experts: int,
    calls: list[Call],
    after: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Every statistic of a layer, token by token; ``after``: what follows the down projection."""
    hidden = calls[0].hidden.shape[1]
    inner_size = run_expert(family, experts, 0, calls[0].hidden[0])[0].shape[0]
    sums = {
        "token_count": torch.zeros(num_experts, dtype=torch.int64),
        "norm_sum": torch.zeros(num_experts).double(),
        "norm_sq_sum": torch.zeros(num_experts).double(),
        "weighted_norm_sum": torch.zeros(num_experts).double(),
        "coactivation": torch.zeros(num_experts, num_experts, dtype=torch.int64),
        "gram": torch.zeros(num_experts, num_experts).double(),
        "hidden": torch.zeros(num_experts, hidden).double(),
        "gated_hidden": torch.zeros(num_experts, hidden).double(),
        "inner": torch.zeros(num_experts, inner_size).double(),
        "gated_inner": torch.zeros(num_experts, inner_size).double(),
    }
    for x, ids, gates in _real_tokens(calls):
        norms = {}
        for i, g in zip(ids, gates, strict=True):
            inner, y = run_expert(family, experts, i, x)
            norm = float(after(y).detach().norm())
            norms[i] = g * norm
            sums["token_count"][i] += 1
            sums["norm_sum"][i] += norm
            sums["norm_sq_sum"][i] += norm**2
            sums["weighted_norm_sum"][i] += g * norm
            sums["hidden"][i] += x**2
            sums["gated_hidden"][i] += (g * x) ** 2
            sums["inner"][i] += inner**2
            sums["gated_inner"][i] += (g * inner) ** 2
        for i in ids:
            for j in ids:
                sums["gram"][i, j] += norms[i] * norms[j]
                sums["coactivation"][i, j] += i != j
    return sums


def _real_tokens(calls: list[Call]) -> Iterator[tuple[torch.Tensor, list[int], list[float]]]:
    for call in calls:
        for token in torch.nonzero(call.real).flatten().tolist():
            yield call.hidden[token].double(), call.index[token].tolist(), call.gate[token].double().tolist()


def byte_tokenizer() -> Any:
    """One token a byte, and ``<eos>`` = 256: what a text's ids must be is plain from its bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level tokenizers write byte b as a printable character; those of ASCII that print stay themselves.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _byte_of(character: str) -> int:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if ord(character) < 256:
        return ord(character)
    return [byte for byte in range(256) if byte not in printable][ord(character) - 256]
