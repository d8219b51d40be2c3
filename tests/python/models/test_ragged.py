# SPDX-License-Identifier: Apache-2.0
"""Layers with different numbers of experts: in memory, on disk, back again, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from model_families import E, kept_ids, logits, make_model, reload, without_experts

from stun_ext.checkpoint import save_pretrained
from stun_ext.models import analyze, from_pretrained, plan_slices, slicing_refusals

FAMILIES = [
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "gemma4_text",
    "lfm2_moe",
    "ernie4_5_moe",
    "jamba",
]
KEYS = {
    "mixtral": "num_local_experts",
    "qwen3_moe": "num_local_experts",
    "gpt_oss": "num_local_experts",
    "deepseek_v3": "n_routed_experts",
    "gemma4_text": "num_experts",
    "lfm2_moe": "num_experts",
    "ernie4_5_moe": "moe_num_experts",
    "jamba": "num_experts",
}


def slice_raggedly(family):
    changes = {"num_hidden_layers": 5} if family in ("jamba", "ernie4_5_moe") else {}
    if family == "ernie4_5_moe":
        changes["moe_layer_end_index"] = 4
    model = make_model(family, **changes)
    moe = analyze(model)
    counts = [(8, 6, 4)[(number + 1) % 3] for number in range(len(moe.layers))]
    kept = [
        kept_ids(E, layer.n_group, count, number)
        for number, (layer, count) in enumerate(zip(moe.layers, counts, strict=True))
    ]
    plan = plan_slices(moe, counts)
    assert plan.ragged
    plan.apply(kept)
    return model, moe, counts, kept


@pytest.mark.parametrize("family", FAMILIES)
def test_save_load_generate_and_save_again(family, tmp_path):
    model, moe, counts, _ = slice_raggedly(family)
    assert moe.is_ragged and [layer.num_experts for layer in moe.layers] == counts
    in_memory = logits(model)
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    per_layer = {
        int(layer): fields[KEYS[family]]
        for layer, fields in written["per_layer_config"].items()
        if KEYS[family] in fields
    }
    assert per_layer == {
        layer.index: count for layer, count in zip(moe.layers, counts, strict=True) if count != max(counts)
    }
    assert written[KEYS[family]] == max(counts) == moe.num_experts

    loaded = reload(tmp_path / "out", from_pretrained)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(logits(loaded), in_memory)
    assert [layer.num_experts for layer in analyze(loaded).layers] == counts

    tokens = torch.tensor([[5, 6, 7]])
    grown = loaded.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(grown, model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False))

    loaded.save_pretrained(tmp_path / "again")  # Transformers' own method
    assert torch.equal(logits(reload(tmp_path / "again", from_pretrained)), in_memory)


def test_fused_weights_are_stored_per_expert(tmp_path):
    """The stock conversion is used: a ragged Mixtral has the published names on disk."""
    from safetensors import safe_open

    model, moe, counts, _ = slice_raggedly("mixtral")
    save_pretrained(model, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    for layer, count in zip(moe.layers, counts, strict=True):
        prefix = f"model.layers.{layer.index}.block_sparse_moe.experts."
        assert {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)} == {
            str(expert) for expert in range(count)
        }


@pytest.mark.parametrize(
    ("family", "router", "biases"),
    [
        ("mixtral", "gate.weight", ()),
        ("gpt_oss", "router.weight", ()),
        ("deepseek_v3", "gate.weight", ("gate.e_score_correction_bias",)),
    ],
)
def test_result_is_the_original_that_cannot_choose_the_dropped_experts(family, router, biases):
    model, moe, counts, kept = slice_raggedly(family)
    original = make_model(family)
    dropped = {
        layer.name: [expert for expert in range(E) if expert not in ids]
        for layer, ids, count in zip(moe.layers, kept, counts, strict=True)
        if count < E
    }
    with without_experts(original, dropped, router, biases):
        expected = logits(original)
    # logits of experts that a layer keeps in another order are summed in another order
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_ragged_models_are_analyzed_but_not_pruned_again():
    model, moe, _, _ = slice_raggedly("mixtral")
    for found in (moe, analyze(model)):
        assert slicing_refusals(found) == [
            "its layers already have different numbers of experts (6, 4, 8), so they cannot be pruned again"
        ]
        with pytest.raises(ValueError, match=r"different numbers of experts \(6, 4, 8\)"):
            plan_slices(found, [4, 4, 4])


def test_all_layers_smaller_than_before_keep_the_largest_as_the_model_s(tmp_path):
    model = make_model("qwen3_moe")
    plan_slices(analyze(model), [3, 5, 3]).apply([[0, 1, 2], [0, 1, 2, 3, 4], [5, 6, 7]])
    assert model.config.num_experts == 5
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["num_experts"], written["num_local_experts"]) == (5, 5)
    assert written["per_layer_config"] == {"0": {"num_local_experts": 3}, "2": {"num_local_experts": 3}}
    assert torch.equal(logits(reload(tmp_path / "out", from_pretrained)), logits(model))


def test_stock_loading_of_a_ragged_checkpoint_is_an_error_not_a_wrong_model(tmp_path):
    model, _, _, _ = slice_raggedly("mixtral")
    save_pretrained(model, tmp_path / "out")
    with pytest.raises(Exception, match=r"num_local_experts|ignore_mismatched_sizes"):
        reload(tmp_path / "out")


def test_ordinary_checkpoints_load_as_stock_ones_do(tmp_path):
    model = make_model("qwen3_moe")
    model.save_pretrained(tmp_path / "out")
    loaded = reload(tmp_path / "out", from_pretrained)
    assert torch.equal(logits(loaded), logits(model))
    with_info = from_pretrained(tmp_path / "out", output_loading_info=True)
    assert with_info[1]["missing_keys"] in (set(), [])


def test_loading_keyword_arguments_reach_the_stock_loader(tmp_path):
    model, _, counts, _ = slice_raggedly("mixtral")
    save_pretrained(model, tmp_path / "out")
    loaded, info = from_pretrained(tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True)
    assert loaded.dtype == torch.bfloat16 and not info["missing_keys"] and not info["unexpected_keys"]
    assert not loaded.training
    assert [layer.num_experts for layer in analyze(loaded).layers] == counts


@pytest.mark.parametrize(
    ("per_layer", "message"),
    [
        ({"0": {"num_local_experts": 9}}, "layer 0 must have 1 to 8 experts, got 9"),
        ({"0": {"num_local_experts": 0}}, "layer 0 must have 1 to 8 experts, got 0"),
    ],
)
def test_wrong_per_layer_counts_are_refused(per_layer, message, tmp_path):
    make_model("mixtral").save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "per_layer_config": per_layer}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path / "out")


def test_per_layer_counts_of_a_dense_layer_are_refused(tmp_path):
    make_model("deepseek_v3").save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "per_layer_config": {"0": {"n_routed_experts": 4}}})
    )
    with pytest.raises(ValueError, match="layer 0 has an expert count but no experts"):
        from_pretrained(tmp_path / "out")
