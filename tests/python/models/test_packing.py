# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints: written, loaded in place, turned back; and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from model_families import logits, make_model, reload, zero_weights
from safetensors import safe_open
from test_ragged import slice_raggedly
from transformers import AutoModelForCausalLM

import stun_ext
from stun_ext.checkpoint import save_pretrained
from stun_ext.experts_backend import packed_experts
from stun_ext.models import analyze

FAMILIES = [
    "mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "granitemoe", "gemma4_text", "nemotron_h",
]  # fmt: skip
TOLERANCE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order, of logits of size 5


def write(model, folder, **kwargs):
    (folder / "dense").mkdir()
    model.save_pretrained(folder / "dense", **kwargs)
    (folder / "dense" / "tokenizer.json").write_text('{"some": "file"}')
    return folder / "dense"


def load(path, **kwargs):
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return stun_ext.from_pretrained(path, **{**options, **kwargs})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_pack_load_and_unpack(family, tmp_path):
    model = make_model(family)
    zero_weights(model, 0.6)
    dense = write(model, tmp_path)
    report = stun_ext.pack_checkpoint(dense, tmp_path / "packed")
    zeros = [
        float((m.parameter == 0).float().mean()) for layer in analyze(model).layers for m in layer.matrices
    ]
    assert report.sparsity == pytest.approx(sum(zeros) / len(zeros), abs=0.02)
    assert report.num_packed == report.num_matrices

    loaded = load(tmp_path / "packed")
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.config._experts_implementation == "stun_ext"
    torch.testing.assert_close(logits(loaded), logits(model), **TOLERANCE)
    held = sum(experts.nbytes for experts in map(packed_experts, loaded.modules()) if experts is not None)
    assert held == report.packed_bytes

    size = stun_ext.unpack_checkpoint(tmp_path / "packed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dense)
    assert size == report.dense_bytes + report.other_bytes


def test_bfloat16_with_special_values_and_shards(tmp_path):
    """-0, NaN and subnormal bits survive, experts with few zeros stay dense, and each shard comes back."""
    model = make_model("mixtral")
    zero_weights(model, 0.5)
    model = model.bfloat16()
    layers = analyze(model).layers
    with torch.no_grad():
        layers[0].matrices[0].parameter[0, 0, :3] = torch.tensor([-0.0, float("nan"), 1e-40])
        layers[1].matrices[1].parameter[2].fill_(1.0)
    dense = write(model, tmp_path, max_shard_size="60KB")
    assert (dense / "model.safetensors.index.json").is_file()
    report = stun_ext.pack_checkpoint(dense, tmp_path / "packed")
    assert report.num_matrices - report.num_packed == 1
    stun_ext.unpack_checkpoint(tmp_path / "packed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(dense)


def test_dense_and_packed_experts_over_bfloat16_shards(tmp_path):
    model = make_model("mixtral")
    zero_weights(model, 0.5)
    with torch.no_grad():
        analyze(model).layers[1].matrices[1].parameter[2].fill_(0.125)
    dense = write(model.bfloat16(), tmp_path, max_shard_size="60KB")
    stun_ext.pack_checkpoint(dense, tmp_path / "packed")
    assert load(tmp_path / "packed", dtype="auto").dtype == torch.bfloat16
    torch.testing.assert_close(logits(load(tmp_path / "packed")), logits(reload(dense)), **TOLERANCE)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_layers_with_different_numbers_of_experts(family, tmp_path):
    model, _, counts, _ = slice_raggedly(family)
    zero_weights(model, 0.5)
    save_pretrained(model, tmp_path / "dense")
    stun_ext.pack_checkpoint(tmp_path / "dense", tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    found = [experts for module in loaded.modules() if (experts := packed_experts(module)) is not None]
    assert [len(experts.up) for experts in found] == counts
    torch.testing.assert_close(logits(loaded), logits(model), **TOLERANCE)
    stun_ext.unpack_checkpoint(tmp_path / "packed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "dense")


def test_any_reader_of_safetensors_opens_the_file_and_tensors_are_aligned(tmp_path):
    model = make_model("qwen3_moe", moe_intermediate_size=20)
    zero_weights(model, 0.5)
    stun_ext.pack_checkpoint(write(model, tmp_path), tmp_path / "packed")
    path = tmp_path / "packed" / "model.stun.safetensors"
    parameter = analyze(model).layers[0].matrices[0].parameter
    with safe_open(path, framework="pt") as file:
        values = file.get_tensor("model.layers.0.mlp.experts.gate_up_proj.3.values")
        masks = file.get_tensor("model.layers.0.mlp.experts.gate_up_proj.3.masks")
        assert file.metadata()["format_version"] == "1"
    nonzero = parameter[3].detach()
    nonzero = torch.cat([row[row != 0] for row in nonzero])  # 32 columns are one block, so row follows row
    assert torch.equal(values[: len(nonzero)], nonzero) and not values[len(nonzero) :].any()
    assert masks.dtype == torch.uint32 and masks.shape == (40,)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entries = [entry for name, entry in header.items() if name.endswith((".values", ".masks", ".weight"))]
    assert all((8 + length + entry["data_offsets"][0]) % 64 == 0 for entry in entries)


def test_stock_transformers_stops_instead_of_inventing_experts(tmp_path):
    model = make_model("mixtral")
    zero_weights(model, 0.5)
    stun_ext.pack_checkpoint(write(model, tmp_path), tmp_path / "packed")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_maps_the_experts(tmp_path):
    """Private memory grows by the other weights, not by the experts, packed or dense."""
    model = make_model(
        "qwen3_moe", hidden_size=256, moe_intermediate_size=256, num_experts=32, num_hidden_layers=2
    ).bfloat16()
    zero_weights(model, 0.5)
    report = stun_ext.pack_checkpoint(write(model, tmp_path), tmp_path / "packed")
    load(tmp_path / "packed", dtype="auto")  # what is loaded once
    before = anonymous_bytes()
    loaded = load(tmp_path / "packed", dtype="auto")
    grown = anonymous_bytes() - before
    assert report.packed_bytes > 12 << 20
    assert grown < 4 << 20, f"{grown:,} bytes"
    del loaded


def anonymous_bytes():
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


def test_what_pack_refuses(tmp_path):
    model = make_model("mixtral")
    zero_weights(model, 0.5)
    dense = write(model, tmp_path)
    with pytest.raises(ValueError, match="no config"):
        stun_ext.pack_checkpoint(tmp_path, tmp_path / "packed")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((dense / "config.json").read_text())
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        stun_ext.pack_checkpoint(tmp_path / "empty", tmp_path / "packed")
    with pytest.raises(ValueError, match="source model"):
        stun_ext.pack_checkpoint(dense, dense, force=True)
    stun_ext.pack_checkpoint(dense, tmp_path / "packed")
    with pytest.raises(FileExistsError):
        stun_ext.pack_checkpoint(dense, tmp_path / "packed")
    stun_ext.pack_checkpoint(dense, tmp_path / "packed", force=True)
    with pytest.raises(ValueError, match="packed already"):
        stun_ext.pack_checkpoint(tmp_path / "packed", tmp_path / "again")
    with pytest.raises(ValueError, match=r"holds no model\.stun\.safetensors"):
        stun_ext.unpack_checkpoint(dense, tmp_path / "again")
    (tmp_path / "dbrx").mkdir()
    other = write(make_model("dbrx"), tmp_path / "dbrx")
    with pytest.raises(ValueError, match="'dbrx' computes its experts itself"):
        stun_ext.pack_checkpoint(other, tmp_path / "again")
    assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".again*"))


def test_what_loading_refuses(tmp_path):
    model = make_model("mixtral")
    zero_weights(model, 0.5)
    stun_ext.pack_checkpoint(write(model, tmp_path), tmp_path / "packed")
    with pytest.raises(ValueError, match="compute on the CPU"):
        load(tmp_path / "packed", device_map="cuda:0")
    with pytest.raises(ValueError, match="'stun_ext' alone"):
        load(tmp_path / "packed", experts_implementation="eager")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["intermediate_size"] = 28
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj must be \[8, 48, 32\]"):
        load(tmp_path / "packed")
