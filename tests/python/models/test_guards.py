# SPDX-License-Identifier: Apache-2.0
"""Models that must not be pruned in memory, and which linear layers belong to which scope."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from model_families import CONFIGS, make_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from stun_ext.models import check_prunable, decoder_linears


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    )


def foreign(package: str, base: type = nn.Linear) -> type:
    """A module class that claims to come from another package."""
    return type("Linear4bit", (base,), {"__module__": f"{package}.nn.modules"})


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_ordinary_models_pass(family):
    check_prunable(make_model(family).to(torch.bfloat16))


def test_peft_modules_are_refused_with_advice():
    model = llama()
    model.model.layers[0].self_attn.q_proj = foreign("peft.tuners.lora")(32, 32)
    with pytest.raises(ValueError, match="merge_and_unload"):
        check_prunable(model)


def test_wrapped_models_are_refused_with_advice():
    wrapper = type("PeftModel", (nn.Module,), {"__module__": "peft.peft_model"})()
    wrapper.base_model = llama()
    with pytest.raises(ValueError, match="PEFT adapters"):
        check_prunable(wrapper)
    with pytest.raises(ValueError, match=r"is a DataParallel, not a transformers.*unwrap it"):
        check_prunable(nn.DataParallel(llama()))


@pytest.mark.parametrize("package", ["bitsandbytes", "gptqmodel", "hqq", "torchao"])
def test_quantised_modules_are_refused_by_name(package):
    model = llama()
    model.model.layers[1].mlp.up_proj = foreign(package)(32, 48)
    with pytest.raises(
        ValueError, match=rf"model.layers.1.mlp.up_proj is a {package} module\).*quantise the result"
    ):
        check_prunable(model)


def test_quantization_config_is_refused():
    model = llama()
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match="the model is quantised: load the original weights"):
        check_prunable(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_narrow_weights_are_refused_by_name(dtype):
    model = llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.up_proj.weight is stored as torch"):
        check_prunable(model)


def test_weights_that_are_not_in_memory_are_refused_by_name():
    model = llama()
    model.model.layers[1].mlp.down_proj.to("meta")
    with pytest.raises(
        ValueError, match=r'model.layers.1.mlp.down_proj.weight is not in memory.*device_map="cpu"'
    ):
        check_prunable(model)


def test_checking_imports_no_optional_package():
    before = {name for name in ("peft", "bitsandbytes", "accelerate") if name in sys.modules}
    check_prunable(llama())
    assert {name for name in ("peft", "bitsandbytes", "accelerate") if name in sys.modules} == before
    assert isinstance(sys, types.ModuleType)


# --- decoder_linears ---


def names(model, scope):
    return {name.split(".", 3)[-1] for name in decoder_linears(model, scope)}


def test_linears_of_a_dense_decoder():
    model = llama()
    attention, mlp = decoder_linears(model, ["attention"]), decoder_linears(model, ["mlp"])
    assert list(attention) == [
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkvo"
    ]
    assert list(mlp) == [
        f"model.layers.{layer}.mlp.{name}_proj" for layer in range(2) for name in ("gate", "up", "down")
    ]
    assert attention["model.layers.1.self_attn.q_proj"] is model.model.layers[1].self_attn.q_proj
    assert decoder_linears(model, ["shared_experts"]) == {}
    assert decoder_linears(model, []) == {}
    assert {**attention, **mlp} == decoder_linears(model, ["mlp", "attention"])


PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("family", "shared", "mlp"),
    [
        ("qwen2_moe", {f"mlp.shared_expert.{name}" for name in PROJECTIONS}, set()),
        (
            "deepseek_v3",
            {f"mlp.shared_experts.{name}" for name in PROJECTIONS},
            {f"mlp.{name}" for name in PROJECTIONS},
        ),
        ("hunyuan_v1_moe", {f"mlp.shared_mlp.{name}" for name in PROJECTIONS}, set()),
        ("jamba", set(), {f"feed_forward.{name}" for name in PROJECTIONS}),
        ("lfm2_moe", set(), {f"feed_forward.w{number}" for number in (1, 2, 3)}),
        ("mixtral", set(), set()),
        ("gpt_oss", set(), set()),
        ("phimoe", set(), set()),
    ],
)
def test_linears_of_moe_decoders(family, shared, mlp):
    model = make_model(family)
    assert names(model, ["shared_experts"]) == shared
    assert names(model, ["mlp"]) == mlp
    attention = names(model, ["attention"])
    assert attention and all("attn" in name for name in attention)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_routers_gates_embeddings_and_head_are_never_listed(family):
    model = make_model(family)
    found = decoder_linears(model, ["attention", "mlp", "shared_experts"])
    assert found
    routed = {id(p) for p in model.parameters() if p.dim() >= 2 and p.shape[0] == 8}
    for name, module in found.items():
        assert isinstance(module, nn.Linear)
        assert id(module.weight) not in routed, name
        assert module.out_features > 1, name
        last = name.split(".")[-1]
        assert last not in ("gate", "router", "wg", "lm_head", "classifier") and not last.endswith("_gate"), (
            name
        )


def test_linears_follow_pruned_weights_in_place():
    model = llama()
    for linear in decoder_linears(model, ["mlp"]).values():
        linear.weight.data.zero_()
    assert all(not layer.mlp.up_proj.weight.any() for layer in model.model.layers)


def test_unknown_scope():
    with pytest.raises(ValueError, match="scope must be of attention, mlp, shared_experts; got 'experts'"):
        decoder_linears(llama(), ["mlp", "experts"])
