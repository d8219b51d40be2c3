# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of many families, and what their experts must look like, written down by hand.

`EXPERT_TENSORS` is the independent reference for the generic slicer: for each family, the tensors of one
MoE layer that are indexed by experts and along which dimension.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

E, H, I, LAYERS = 8, 32, 24, 3  # noqa: E741
BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": H,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": E,
    "moe_intermediate_size": I,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": E, "intermediate_size": I},
    "qwen2_moe": {"num_experts": E, "moe_intermediate_size": I, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": E, "moe_intermediate_size": I, "head_dim": 8},
    "olmoe": {"num_experts": E, "intermediate_size": I},
    "deepseek_v2": {**MLA, **DEEPSEEK, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**MLA, **DEEPSEEK},
    "glm4_moe": {**DEEPSEEK, "head_dim": 8},
    "gpt_oss": {"num_local_experts": E, "intermediate_size": I, "head_dim": 8, "sliding_window": 16},
    "phimoe": {"num_local_experts": E, "intermediate_size": I},
    "granitemoe": {"num_local_experts": E, "intermediate_size": I},
    "minimax_m2": {"num_local_experts": E, "intermediate_size": I, "head_dim": 8},
    "ernie4_5_moe": {
        "moe_num_experts": E,
        "moe_k": 2,
        "moe_intermediate_size": I,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
    },
    "lfm2_moe": {
        "num_experts": E,
        "moe_intermediate_size": I,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "jamba": {
        "num_experts": E,
        "intermediate_size": I,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "hunyuan_v1_moe": {"num_experts": E, "moe_topk": 2, "intermediate_size": I, "head_dim": 8},
    # Beyond the common layouts: zero experts after the real ones, flattened experts, experts that live in the
    # decoder layer itself, experts in attention.
    "longcat_flash": {
        **MLA,
        "num_layers": 2,
        "num_hidden_layers": 4,
        "n_routed_experts": E,
        "moe_topk": 2,
        "zero_expert_num": 4,
        "ffn_hidden_size": 40,
        "expert_ffn_hidden_size": I,
        "head_dim": 4,
    },
    "dbrx": {
        "d_model": H,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "ffn_config": {"ffn_hidden_size": I, "moe_num_experts": E, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "num_experts": E,
        "top_k_experts": 2,
        "moe_intermediate_size": I,
        "head_dim": 8,
    },
    "nemotron_h": {  # experts without a gate
        "layers_block_type": ["attention", "moe", "moe"],
        "n_routed_experts": E,
        "moe_intermediate_size": I,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 8,
    },
    "jetmoe": {
        "num_local_experts": E,
        "intermediate_size": I,
        "kv_channels": 8,
        "num_key_value_heads": 2,
    },
}
REQUIRED = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss",
    "phimoe", "granitemoe", "minimax_m2", "ernie4_5_moe", "lfm2_moe", "jamba", "hunyuan_v1_moe",
]  # fmt: skip
FAMILIES = [*REQUIRED, "longcat_flash", "dbrx", "gemma4_text", "jetmoe"]

FUSED = {"experts.gate_up_proj": 0, "experts.down_proj": 0}
CORRECTED = {**FUSED, "gate.weight": 0, "gate.e_score_correction_bias": 0}
EXPERT_TENSORS: dict[str, dict[str, int]] = {
    "mixtral": {**FUSED, "gate.weight": 0},
    "qwen2_moe": {**FUSED, "gate.weight": 0},
    "qwen3_moe": {**FUSED, "gate.weight": 0},
    "olmoe": {**FUSED, "gate.weight": 0},
    "deepseek_v2": {**FUSED, "gate.weight": 0},
    "deepseek_v3": CORRECTED,
    "glm4_moe": CORRECTED,
    "gpt_oss": {
        **FUSED,
        "experts.gate_up_proj_bias": 0,
        "experts.down_proj_bias": 0,
        "router.weight": 0,
        "router.bias": 0,
    },
    "phimoe": {**FUSED, "router.weight": 0},
    "granitemoe": {**FUSED, "router.weight": 0},
    "minimax_m2": {**FUSED, "gate.weight": 0, "e_score_correction_bias": 0},
    "ernie4_5_moe": {**FUSED, "gate.weight": 0, "gate.moe_statics.e_score_correction_bias": 1},
    "lfm2_moe": {**FUSED, "gate.weight": 0, "expert_bias": 0},
    "jamba": {**FUSED, "router.weight": 0},
    "hunyuan_v1_moe": {**FUSED, "gate.wg.weight": 0},
}
# Where the experts are, and the layers that have them.
BLOCKS = {"granitemoe": "block_sparse_moe", "lfm2_moe": "feed_forward", "jamba": "feed_forward"}
MOE_LAYERS = {
    "deepseek_v2": [1, 2],
    "deepseek_v3": [1, 2],
    "glm4_moe": [1, 2],
    "ernie4_5_moe": [1, 2],
    "lfm2_moe": [1, 2],
    "jamba": [1],
}


def make_config(family: str, **changes: Any) -> Any:
    settings = {**BASE, **CONFIGS[family], **changes}
    if family == "dbrx":  # has its own names for the common ones
        settings = {**CONFIGS[family], "vocab_size": 96, "pad_token_id": 0, **changes}
    config = CONFIG_MAPPING[family](**settings)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights: stock initialisation leaves routers and biases at zero, where every expert ties."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.dim() > 1 else 0.1
            parameter.copy_(noise * scale + (1.0 if parameter.dim() == 1 and "norm" in name else 0.0))
        for name, buffer in model.named_buffers():
            if "bias" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model


def make_model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family, **changes)).float().eval()
    return randomize(model)


def reload(path: Any, loader: Any = AutoModelForCausalLM.from_pretrained, **kwargs: Any) -> Any:
    """Loads a checkpoint so that it computes as `make_model` does.

    Memory-mapped tensors start anywhere in a file, and BLAS may add in another order when they are not
    aligned as fresh ones are (last bit of granitemoe's logits), so they are copied.
    """
    options = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    model = loader(path, **options, **kwargs).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def zero_weights(model: Any, sparsity: float, seed: int = 5) -> None:
    """Sets a random share of the experts' weights to zero, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3 and "experts" in name:
                parameter[torch.rand(parameter.shape, generator=generator) < sparsity] = 0.0


def kept_ids(num_experts: int, n_group: int, count: int, shift: int = 0) -> list[int]:
    """`count` experts, equally many of each group and not simply the first; `shift` varies the choice."""
    old, new = num_experts // n_group, count // n_group
    within = sorted((3 * position + 1 + shift) % old for position in range(new)) if old % 3 else None
    within = within or sorted((2 * position + 1 + shift) % old for position in range(new))
    if len(set(within)) < new:
        within = list(range(old - new, old))
    return [group * old + position for group in range(n_group) for position in within]


@contextmanager
def without_experts(model: Any, dropped: dict[str, list[int]], router: str, biases: tuple[str, ...] = ()):
    """Within the context `model`'s routers cannot choose the dropped experts: their logits are −inf.

    Knows nothing of the code under test: it intercepts the linear map of each router, and sets the correction
    biases of the dropped experts to −inf.

    Args:
        model: The whole model.
        dropped: Name of a MoE block -> ids of the experts to keep from being chosen.
        router: Name of the router's weight in the block.
        biases: Names in the block of biases that are added to the scores later.
    """
    masks, saved = {}, []
    for block, ids in dropped.items():
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        masks[id(tensors[f"{block}.{router}"])] = ids
        for name in biases:
            bias = tensors[f"{block}.{name}"]
            saved.append((bias, bias.detach().clone()))
            with torch.no_grad():
                bias.view(-1)[ids] = float("-inf")
    original = F.linear

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        result = original(input, weight, bias)
        if id(weight) in masks:
            seen.add(id(weight))
            result = result.clone()
            result[..., masks[id(weight)]] = float("-inf")
        return result

    seen: set[int] = set()
    F.linear = linear
    try:
        yield
        assert seen == set(masks), "a router was not reached"
    finally:
        F.linear = original
        with torch.no_grad():
            for bias, value in saved:
                bias.copy_(value)


def clone(model: Any) -> Any:
    return copy.deepcopy(model)
