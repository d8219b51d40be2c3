# SPDX-License-Identifier: Apache-2.0
"""Tiny random models for the pipeline's tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def make_model():
    """Builds a tiny random model of a family below with changes to its config: make_model("mixtral", vocab_size=64)."""

    def make(family: str = "qwen3_moe", **changes):
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        settings = {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        special = {
            "qwen3_moe": {
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
                "head_dim": 8,
            },
            "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24},
            "gpt_oss": {
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "intermediate_size": 24,
                "head_dim": 8,
            },
            "deepseek_v3": {
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
                "n_group": 2,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "n_shared_experts": 1,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 8,
                "num_key_value_heads": 4,
            },
            "llama": {},
        }[family]
        config = CONFIG_MAPPING[family](**{**settings, **special, **changes})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(1)
        with (
            torch.no_grad()
        ):  # stock initialisation leaves routers and biases at zero: every expert would tie
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * (
                    0.3 if parameter.dim() > 1 else 0.05
                )
                parameter.copy_(noise + (1.0 if parameter.dim() == 1 and "norm" in name else 0.0))
        return model

    return make


@pytest.fixture
def tokens():
    """Calibration: 12 sequences of 24 tokens."""
    return torch.randint(3, 96, (12, 24), generator=torch.Generator().manual_seed(5))
