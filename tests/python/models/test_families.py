# SPDX-License-Identifier: Apache-2.0
"""Every family: experts are found, removed, saved and loaded by stock Transformers, with the right result."""

from __future__ import annotations

import json

import pytest
import torch
from model_families import (
    BLOCKS,
    EXPERT_TENSORS,
    FAMILIES,
    LAYERS,
    MOE_LAYERS,
    REQUIRED,
    E,
    H,
    I,
    clone,
    kept_ids,
    logits,
    make_model,
    reload,
    without_experts,
)

from stun_ext.checkpoint import save_pretrained
from stun_ext.models import analyze, legal_expert_counts, plan_slices

ROUTERS = {
    "gpt_oss": "router.weight",
    "phimoe": "router.weight",
    "granitemoe": "router.weight",
    "jamba": "router.weight",
    "hunyuan_v1_moe": "gate.wg.weight",
}
CORRECTIONS = {
    "deepseek_v3": ("gate.e_score_correction_bias",),
    "glm4_moe": ("gate.e_score_correction_bias",),
    "minimax_m2": ("e_score_correction_bias",),
    "ernie4_5_moe": ("gate.moe_statics.e_score_correction_bias",),
    "lfm2_moe": ("expert_bias",),
}


def slice_uniformly(model, count=None):
    """Slices every layer to `count` (default: the second largest legal one); returns the kept ids."""
    moe = analyze(model)
    count = count or legal_expert_counts(moe.layers[0])[-2]
    kept = [
        kept_ids(layer.num_experts, layer.n_group, count, shift) for shift, layer in enumerate(moe.layers)
    ]
    plan_slices(moe, [count] * len(moe.layers)).apply(kept)
    return moe, kept


@pytest.mark.parametrize("family", REQUIRED)
def test_analyze_finds_layers_experts_and_router(family):
    model = make_model(family)
    moe = analyze(model)
    indices = MOE_LAYERS.get(family, list(range(LAYERS)))
    assert moe.family == family
    assert moe.num_experts == E and not moe.is_ragged
    assert [layer.index for layer in moe.layers] == indices
    for layer in moe.layers:
        block = f"model.layers.{layer.index}.{BLOCKS.get(family, 'mlp')}"
        assert (layer.name, layer.experts_name) == (block, f"{block}.experts")
        assert (layer.num_experts, layer.top_k) == (E, 2)
        assert (layer.n_group, layer.topk_group) == (
            (2, 1) if family in ("deepseek_v2", "deepseek_v3", "glm4_moe") else (1, 1)
        )
        assert layer.supports_statistics
        router = dict(model.named_parameters())[f"{block}.{ROUTERS.get(family, 'gate.weight')}"]
        assert layer.router_weight.data_ptr() == router.data_ptr() and layer.router_weight.shape == (E, H)
        matrices = {matrix.name: matrix for matrix in layer.matrices}
        assert {name: matrix.input for name, matrix in matrices.items()} == {
            "gate_up_proj": "hidden",
            "down_proj": "intermediate",
        }
        assert matrices["gate_up_proj"].expert(3).shape == (2 * I, H)
        assert matrices["down_proj"].expert(3).shape == (H, I)
        assert layer.num_expert_parameters() == 3 * I * H


@pytest.mark.parametrize("family", REQUIRED)
def test_expert_view_shares_memory_with_the_parameter(family):
    layer = analyze(make_model(family)).layers[-1]
    for matrix in layer.matrices:
        view = matrix.expert(5)
        view[1, 2] = 7.0
        stored = matrix.parameter[5]
        assert (stored[2, 1] if matrix.is_transposed else stored[1, 2]) == 7.0


@pytest.mark.parametrize("family", REQUIRED)
def test_exactly_the_expert_tensors_are_sliced(family):
    model = make_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moe, kept = slice_uniformly(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    sliced = {}
    for layer, ids in zip(moe.layers, kept, strict=True):
        for name, dim in EXPERT_TENSORS[family].items():
            sliced[f"{layer.name}.{name}"] = (dim, ids)
    assert sliced.keys() <= before.keys()
    for name, tensor in before.items():
        if name in sliced:
            dim, ids = sliced[name]
            tensor = torch.stack([tensor.select(dim, expert) for expert in ids], dim=dim)
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_reloads_bit_for_bit(family, tmp_path):
    model = make_model(family)
    slice_uniformly(model)
    in_memory = logits(model)
    save_pretrained(model, tmp_path / "out")
    loaded = reload(tmp_path / "out")
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert torch.isfinite(in_memory).all()
    assert torch.equal(in_memory, logits(loaded))
    counts = {
        (name, key): value
        for name, module in loaded.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int) and not key.startswith("_")
    }
    for (name, key), value in counts.items():  # every count that the modules hold, as a fresh model has it
        assert getattr(model.get_submodule(name), key) == value, (name, key)


@pytest.mark.parametrize("family", REQUIRED)
@pytest.mark.parametrize("num_kept", ["most", "fewest"])
def test_result_is_the_original_that_cannot_choose_the_dropped_experts(family, num_kept):
    original = make_model(family)
    model = clone(original)
    legal = legal_expert_counts(analyze(model).layers[0])
    moe, kept = slice_uniformly(model, legal[0] if num_kept == "fewest" else legal[-2])
    dropped = {
        layer.name: [expert for expert in range(E) if expert not in ids]
        for layer, ids in zip(moe.layers, kept, strict=True)
    }
    with without_experts(original, dropped, ROUTERS.get(family, "gate.weight"), CORRECTIONS.get(family, ())):
        expected = logits(original)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    # The check can fail: the original with all its experts says something else.
    assert (logits(original) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_config_says_the_new_count_everywhere(family, tmp_path):
    model = make_model(family)
    moe, kept = slice_uniformly(model)
    count = len(kept[0])
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    section = written["ffn_config"] if family == "dbrx" else written
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    found = {name: section[name] for name in names if name in section}
    assert found and set(found.values()) == {count}
    assert "per_layer_config" not in written or family == "gemma4_text"
    assert moe.num_experts == count and all(layer.num_experts == count for layer in moe.layers)
    again = analyze(model)
    assert [layer.num_experts for layer in again.layers] == [count] * len(again.layers)


def test_qwen3_moe_config_has_both_names(tmp_path):
    model = make_model("qwen3_moe")
    slice_uniformly(model, 5)
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["num_experts"], written["num_local_experts"]) == (5, 5)


def test_zero_experts_stay_after_the_real_ones():
    model = make_model("longcat_flash")
    router = "model.layers.0.mlp.router.classifier.weight"
    before = dict(model.named_parameters())[router].clone()
    _, kept = slice_uniformly(model, 6)
    after = dict(model.named_parameters())[router]
    assert torch.equal(after, before[[*kept[0], 8, 9, 10, 11]])


def test_flattened_experts_are_cut_in_blocks():
    model = make_model("dbrx")
    name = "transformer.blocks.1.ffn.experts.mlp.w2"
    before = dict(model.named_parameters())[name].reshape(E, I, H).clone()
    _, kept = slice_uniformly(model, 5)
    assert torch.equal(dict(model.named_parameters())[name].reshape(5, I, H), before[kept[1]])


def test_experts_in_attention_are_layers_of_their_own():
    moe = analyze(make_model("jetmoe"))
    assert [layer.name for layer in moe.layers[:2]] == [
        "model.layers.0.mlp",
        "model.layers.0.self_attention.experts",
    ] or [layer.name for layer in moe.layers[:2]] == [
        "model.layers.0.self_attention.experts",
        "model.layers.0.mlp",
    ]
    assert {layer.index for layer in moe.layers} == set(range(LAYERS))
    with pytest.raises(ValueError, match="decoder layer 0 has several MoE blocks"):
        plan_slices(moe, [6, 8] + [8] * (len(moe.layers) - 2))


def test_scales_of_the_router_follow_their_experts():
    model = make_model("gemma4_text")
    name = "model.layers.0.router.per_expert_scale"
    before = dict(model.named_parameters())[name].clone()
    _, kept = slice_uniformly(model, 5)
    assert torch.equal(dict(model.named_parameters())[name], before[kept[0]])
