# SPDX-License-Identifier: Apache-2.0
"""Layouts as real checkpoints have them: names that no class knows, layers that classes drop, quantised experts."""

from __future__ import annotations

import json
import re

import pytest
import torch
from model_families import make_config, make_model
from stored_models import Source, arctic, expected, expected_kept, flat, read, same, write

from stun_ext import prune_checkpoint


def _block(name):
    """The layer's number in a name."""
    match = re.search(r"(?:layers|blocks)\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _prune(tmp_path, tensors, config, router, count, sliced, factor=1, **settings):
    """Prunes to `count` experts and compares with the plainest way; returns the new config and the report."""
    write(tmp_path / "in", tensors, config)
    experts = len(next(tensor for name, tensor in tensors.items() if router in name))
    report = prune_checkpoint(
        tmp_path / "in",
        tmp_path / "out",
        expert_sparsity=1 - count / experts,
        representative="router",
        **settings,
    )
    kept = {_block(name): expected_kept(tensor, count) for name, tensor in tensors.items() if router in name}
    assert report.kept == kept
    assert len({tuple(ids) for ids in kept.values()}) == len(kept) > 1  # each layer by its own router
    same(read(tmp_path / "out"), expected(tensors, lambda name: kept.get(_block(name)), sliced, factor))
    return json.loads((tmp_path / "out" / "config.json").read_text()), report


def test_arctic(tmp_path):
    tensors, config = arctic()
    new, report = _prune(
        tmp_path, tensors, config, "block_sparse_moe.gate.weight", 5, r"block_sparse_moe\.gate"
    )
    assert new == {**config, "num_local_experts": 5}
    assert any("does not know 'arctic'" in warning for warning in report.warnings)
    assert report.parameters_before == 2 * 8 * 3 * 16 * 24


def test_flat_experts(tmp_path):
    tensors, config = flat()
    new, report = _prune(
        tmp_path, tensors, config, "router.layer.weight", 4, r"router|experts\.mlp", factor=12
    )
    assert new["ffn_config"] == {"moe_num_experts": 4, "moe_top_k": 2}
    assert report.parameters_after == 2 * 4 * 3 * 12 * 16


def _gpt_oss_mxfp4():
    """The weights of gpt-oss as published: 4-bit blocks of 32, a scale for each, biases in bfloat16."""
    config = make_config("gpt_oss", hidden_size=64, intermediate_size=32, num_local_experts=8)
    model = make_model("gpt_oss", hidden_size=64, intermediate_size=32, num_local_experts=8)
    draw = Source(7)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
            at = f"model.layers.{layer}.mlp.experts.{name}"
            tensors[f"{at}_blocks"] = draw(8, rows, columns // 32, 16, dtype=torch.uint8)
            tensors[f"{at}_scales"] = draw(8, rows, columns // 32, dtype=torch.uint8)
    written = config.to_dict()
    written["architectures"] = ["GptOssForCausalLM"]
    written["quantization_config"] = {
        "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]
    }  # fmt: skip
    return tensors, written


def test_gpt_oss_in_mxfp4(tmp_path):
    tensors, config = _gpt_oss_mxfp4()
    new, report = _prune(tmp_path, tensors, config, "mlp.router.weight", 6, r"mlp\.(?:router|experts)\.")
    assert new["num_local_experts"] == 6
    assert new["quantization_config"] == config["quantization_config"]
    # Two weights in a byte of the blocks; scales and biases are no weights.
    assert report.parameters_before == 3 * 8 * (64 * 64 + 64 * 32)


def test_quantised_experts_have_no_nearest(tmp_path):
    tensors, config = _gpt_oss_mxfp4()
    write(tmp_path / "in", tensors, config)
    with pytest.raises(ValueError, match="representative must be 'router' for quantised experts"):
        prune_checkpoint(tmp_path / "in", tmp_path / "out", expert_sparsity=0.25, representative="nearest")
    report = prune_checkpoint(tmp_path / "in", tmp_path / "out", expert_sparsity=0.25)
    assert report.recipe.representative == "router"


def _deepseek_fp8():
    """DeepSeek-V3 as published: FP8 weights beside their block scales, and a layer of multi-token prediction."""
    config = make_config("deepseek_v3", n_group=1, topk_group=1, num_nextn_predict_layers=1)
    model = make_model("deepseek_v3", n_group=1, topk_group=1)
    draw = Source(5)
    tensors = {}
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    extra = {
        name.replace("layers.2.", "layers.3."): draw(*tensor.shape)
        for name, tensor in state.items()
        if "layers.2." in name
    }
    extra["model.layers.3.eh_proj.weight"] = draw(32, 64)
    extra["model.layers.3.shared_head.head.weight"] = draw(96, 32)
    for name, tensor in {**state, **extra}.items():
        if name.endswith("experts.gate_up_proj"):
            for e in range(8):
                gate, up = tensor[e].chunk(2)
                for leaf, matrix in (("gate_proj", gate), ("up_proj", up)):
                    _put_fp8(tensors, name.replace("gate_up_proj", f"{e}.{leaf}.weight"), matrix, draw)
        elif name.endswith("experts.down_proj"):
            for e in range(8):
                _put_fp8(tensors, name.replace("down_proj", f"{e}.down_proj.weight"), tensor[e], draw)
        elif name.endswith("e_score_correction_bias"):
            tensors[name] = tensor.float()
        else:
            tensors[name] = tensor.contiguous()
    written = config.to_dict()
    written["architectures"] = ["DeepseekV3ForCausalLM"]
    written["quantization_config"] = {
        "quant_method": "fp8", "weight_block_size": [128, 128],
        "ignored_layers": ["lm_head", "model.layers.1.mlp.experts.0", "model.layers.1.mlp.experts.7.down_proj",
                           *(f"model.layers.2.mlp.experts.{e}.up_proj" for e in range(8))],
    }  # fmt: skip
    return tensors, written


def _put_fp8(tensors, name, matrix, draw):
    tensors[name] = matrix.to(torch.float8_e4m3fn).contiguous()
    tensors[f"{name}_scale_inv"] = draw(1, 1, dtype=torch.float32)


def test_deepseek_with_scales_and_multi_token_prediction(tmp_path):
    tensors, config = _deepseek_fp8()
    new, report = _prune(tmp_path, tensors, config, "mlp.gate.weight", 5, r"mlp\.gate\.")
    assert (new["n_routed_experts"], new["num_nextn_predict_layers"]) == (5, 1)
    assert all(new[alias] == 5 for alias in ("num_experts", "num_local_experts") if alias in new)
    assert any("model.layers.3.mlp is pruned by its own router" in warning for warning in report.warnings)
    ignored = new["quantization_config"]["ignored_layers"]
    wanted = ["lm_head"]
    wanted += [f"model.layers.1.mlp.experts.{report.kept[1].index(0)}"] if 0 in report.kept[1] else []
    wanted += (
        [f"model.layers.1.mlp.experts.{report.kept[1].index(7)}.down_proj"] if 7 in report.kept[1] else []
    )
    assert ignored == wanted + [f"model.layers.2.mlp.experts.{e}.up_proj" for e in range(5)]


def test_one_file_without_an_index(tmp_path):
    tensors, config = arctic()
    write(tmp_path / "in", tensors, config, files=1)
    (tmp_path / "in" / "model.safetensors.index.json").unlink()
    (tmp_path / "in" / "model-00001-of-00001.safetensors").rename(tmp_path / "in" / "model.safetensors")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", sparsity=0.5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "stun_report.json",
    }  # fmt: skip
    assert len(read(tmp_path / "out")) == len(tensors) - 2 * 4 * 3


def test_what_belongs_to_the_model_comes_along(tmp_path):
    tensors, config = arctic()
    write(tmp_path / "in", tensors, config)
    carried = ["configuration_arctic.py", "tokenizer.json", "tokenizer.model", "chat_template.jinja",
               "generation_config.json", "LICENSE.txt"]  # fmt: skip
    for name in carried:
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "in" / "consolidated.safetensors").write_text("of another format")
    prune_checkpoint(tmp_path / "in", tmp_path / "out", sparsity=0.5)
    assert all((tmp_path / "out" / name).read_text() == name for name in carried)
    assert not (tmp_path / "out" / "consolidated.safetensors").exists()
    assert json.loads((tmp_path / "out" / "stun_report.json").read_text())["kept_experts"] == 8


def test_files_keep_their_metadata_and_alignment(tmp_path):
    tensors, config = arctic()
    write(tmp_path / "in", tensors, config)
    prune_checkpoint(tmp_path / "in", tmp_path / "out", sparsity=0.5)
    for file in (tmp_path / "out").glob("*.safetensors"):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        assert length % 8 == 0
        assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}
