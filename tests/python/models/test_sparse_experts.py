# SPDX-License-Identifier: Apache-2.0
"""Transformers with packed experts against the same pruned model with its own dense experts."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from model_families import CONFIGS, clone, logits, make_model, zero_weights

import stun_ext
from stun_ext import experts_backend
from stun_ext.experts_backend import PackedExperts, experts_forward, packed_experts
from stun_ext.models import analyze

FAMILIES = [
    "mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "gemma4_text", "granitemoe", "minimax_m2", "nemotron_h",
]  # fmt: skip
# float32 weights and sums in another order: logits are of size 5, sums are of at most 40 products
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def pruned(family, sparsity=0.5, **changes):
    model = make_model(family, **changes)
    zero_weights(model, sparsity)
    return model


def generate(model, tokens, **kwargs):
    return model.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, **kwargs)


@pytest.mark.parametrize("sparsity", [0.5, 0.65])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_the_dense_models(family, sparsity):
    dense = pruned(family, sparsity)
    packed = clone(dense)
    report = stun_ext.sparsify(packed)
    assert report.num_packed == report.num_matrices > 0
    torch.testing.assert_close(logits(packed), logits(dense), **TOLERANCE)
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(generate(packed, tokens), generate(dense, tokens))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "nemotron_h"])
def test_functions_that_the_core_does_not_know_stay_the_modules_own(family, monkeypatch):
    dense = pruned(family)
    packed = clone(dense)
    stun_ext.sparsify(packed)
    fused = logits(packed)
    again = clone(dense)
    asked = []
    monkeypatch.setattr(experts_backend, "expert_function", lambda module: asked.append(module))
    stun_ext.sparsify(again)
    torch.testing.assert_close(logits(again), logits(dense), **TOLERANCE)
    torch.testing.assert_close(logits(again), fused, **TOLERANCE)
    assert asked


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_batches_with_left_padding(family):
    dense = pruned(family)
    packed = clone(dense)
    stun_ext.sparsify(packed)
    tokens = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
    mask = (tokens != 0).long()
    got = generate(packed, tokens, attention_mask=mask)
    assert torch.equal(got, generate(dense, tokens, attention_mask=mask))
    alone = generate(packed, torch.tensor([[5, 6]]))
    assert torch.equal(got[0, 2:], alone[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_half_precision_is_as_near_to_float32_as_the_dense_model(family, dtype):
    exact = pruned(family).to(dtype).float()  # rounded weights, computed in float32
    dense = clone(exact).to(dtype)
    packed = clone(dense)
    stun_ext.sparsify(packed)
    want = logits(exact)
    bound = 1.5 * (logits(dense).float() - want).abs().mean() + 1e-4
    assert logits(packed).dtype == dtype
    assert (logits(packed).float() - want).abs().mean() < bound


def test_masks_applied_by_products_leave_no_negative_zeros_behind():
    model, other = pruned("mixtral"), pruned("mixtral")
    with torch.no_grad():
        for layer in analyze(other).layers:
            for matrix in layer.matrices:
                matrix.parameter[matrix.parameter == 0] = -0.0
    want = logits(other)
    assert stun_ext.sparsify(other) == stun_ext.sparsify(model)
    torch.testing.assert_close(logits(other), want, **TOLERANCE)


def test_float32_activations_over_bfloat16_weights():
    model = pruned("mixtral").to(torch.bfloat16)
    want = logits(clone(model).float())
    stun_ext.sparsify(model)
    model.float()  # what is left in parameters; packed weights stay as they are
    torch.testing.assert_close(logits(model), want, **TOLERANCE)


def test_experts_with_few_zeros_stay_dense():
    model = make_model("qwen3_moe")
    zero_weights(model, 0.10)
    dense = clone(model)
    report = stun_ext.sparsify(model)
    assert report.num_packed == 0 and report.packed_bytes == report.dense_bytes
    torch.testing.assert_close(logits(model), logits(dense), **TOLERANCE)


def test_bytes_are_those_of_the_format():
    """Values in whole cache lines and one more, and a bit for every weight, in blocks of 4 x 32."""
    model = pruned("qwen3_moe", 0.6)
    expected = dense_bytes = 0
    for layer in analyze(model).layers:
        for matrix in layer.matrices:
            dense_bytes += matrix.parameter.numel() * 4
            for weight in matrix.parameter:
                rows, columns = weight.shape
                expected += (4 * int((weight != 0).sum()) + 63) // 64 * 64 + 64
                expected += 16 * -(-rows // 4) * -(-columns // 32)
    report = stun_ext.sparsify(model)
    assert (report.dense_bytes, report.packed_bytes) == (dense_bytes, expected)
    found = [packed_experts(module) for module in model.modules()]
    assert sum(experts.nbytes for experts in found if experts is not None) == expected
    assert not any("experts" in name for name, _ in model.named_parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_shrinks_to_the_packed_bytes():
    model = make_model(
        "qwen3_moe", hidden_size=256, moe_intermediate_size=256, num_experts=32, num_hidden_layers=2
    ).bfloat16()
    for parameter in model.parameters():  # each in memory of its own, which is given back when it is freed
        parameter.data = parameter.data.clone()
    zero_weights(model, 0.65)
    logits(model)
    before = anonymous_bytes()
    report = stun_ext.sparsify(model)
    saved, promised = before - anonymous_bytes(), report.dense_bytes - report.packed_bytes
    assert report.packed_bytes < 0.43 * report.dense_bytes  # 0.35 + 1/16, and 64 bytes for each matrix
    assert saved > promised - (3 << 20), f"{saved:,} bytes less are resident, {promised:,} promised"


def anonymous_bytes():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


@pytest.mark.parametrize("family", ["dbrx", "jetmoe", "longcat_flash"])
def test_families_that_ignore_the_hook_are_refused_by_name(family):
    model = make_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"\[sparsify\] family '{family}' computes its experts itself"):
        stun_ext.sparsify(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_else_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    with pytest.raises(ValueError, match="no routed experts"):
        stun_ext.sparsify(LlamaForCausalLM(LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        )))  # fmt: skip
    model = pruned("mixtral")
    stun_ext.sparsify(model)
    with pytest.raises(ValueError, match="packed already"):
        stun_ext.sparsify(model)
    with pytest.raises(ValueError, match="unpack"):
        stun_ext.prune(model, calibration=False, sparsity=0.5)
    assert "mixtral" in CONFIGS  # and one whose weights are float64
    with pytest.raises(ValueError, match=r"gate_up_proj must be float32, float16 or bfloat16 on the CPU"):
        stun_ext.sparsify(make_model("mixtral").double())


def test_training_raises_and_inference_without_no_grad_does_not():
    model = pruned("mixtral")
    stun_ext.sparsify(model)
    tokens = torch.tensor([[5, 6, 7]])
    assert not model(input_ids=tokens).logits.requires_grad
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()(input_ids=tokens)
    model.eval()
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match="cannot be trained"):
        model(input_ids=tokens, labels=tokens)


def test_saving_copying_and_pickling(tmp_path):
    model = pruned("mixtral")
    stun_ext.sparsify(model)
    want = logits(model)
    for save in (model.state_dict, lambda: model.save_pretrained(tmp_path / "a")):
        with pytest.raises(ValueError, match="stun-ext pack"):
            save()
    with pytest.raises(ValueError, match="stun-ext pack"):
        stun_ext.save_pretrained(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert torch.equal(logits(copy.deepcopy(model)), want)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(next(filter(None, map(packed_experts, model.modules()))))


def test_ids_of_other_processes_are_skipped():
    """Expert parallelism names experts that are elsewhere by ids from num_experts on."""
    model = pruned("qwen3_moe")
    experts = analyze(model).layers[0].experts
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 8], [8, 8], [3, 0], [9, 2], [7, 3]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    want = torch.zeros(5, 32)
    for token in range(5):
        for slot in range(2):
            expert = int(index[token, slot])
            if expert < 8:
                gate, up = (experts.gate_up_proj[expert].detach() @ hidden[token]).chunk(2)
                down = experts.down_proj[expert].detach()
                want[token] += weights[token, slot] * (down @ (torch.nn.functional.silu(gate) * up))
    with pytest.raises(ValueError, match="not packed"):
        experts_forward(experts, hidden, index, weights)
    stun_ext.sparsify(model)
    torch.testing.assert_close(experts_forward(experts, hidden, index, weights), want)
    everything = torch.full((5, 2), 8)
    assert torch.equal(experts_forward(experts, hidden, everything, weights), torch.zeros(5, 32))
    assert experts_forward(experts, hidden[:0], index[:0], weights[:0]).shape == (0, 32)
    assert isinstance(packed_experts(experts), PackedExperts)
