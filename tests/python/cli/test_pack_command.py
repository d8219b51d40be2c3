# SPDX-License-Identifier: Apache-2.0
"""``stun-ext pack`` and ``stun-ext unpack``."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def pruned(olmoe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "pruned"
    model = AutoModelForCausalLM.from_pretrained(olmoe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter[torch.rand(parameter.shape, generator=generator) < 0.6] = 0
    model.save_pretrained(folder)
    for file in olmoe.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_there_and_back(pruned, invoke, tmp_path):
    result = invoke("pack", pruned, tmp_path / "packed")
    assert result.exit_code == 0, result.stderr
    assert "32 of 32 packed" in result.stdout and str(tmp_path / "packed") in result.stdout
    result = invoke("unpack", tmp_path / "packed", tmp_path / "back", "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    weights = (pruned / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == weights
    assert json.loads(result.stdout)["out"] == str(tmp_path / "back")
    assert {file.name for file in (tmp_path / "back").iterdir()} == {file.name for file in pruned.iterdir()}


def test_json(pruned, invoke, tmp_path):
    result = invoke("pack", pruned, tmp_path / "packed", "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    document = json.loads(result.stdout)
    assert document["num_matrices"] == document["num_packed"] == 32
    assert document["sparsity"] == pytest.approx(0.6, abs=0.02)
    assert document["dense_bytes"] == 2 * 8 * 3 * 16 * 32 * 2
    header = (tmp_path / "packed" / "model.stun.safetensors").stat().st_size
    assert document["packed_bytes"] < header


def test_eval_runs_packed_experts(pruned, invoke, tmp_path):
    invoke("pack", pruned, tmp_path / "packed", "--quiet")
    text = tmp_path / "text.jsonl"
    text.write_text(
        json.dumps({"text": "In the beginning the tables were empty. " * 20, "domain": "tables"}) + "\n"
    )
    results = [
        invoke("eval", model, "--validation", text, "--seq-length", 32, "--json", "--quiet")
        for model in (pruned, tmp_path / "packed")
    ]
    assert [result.exit_code for result in results] == [0, 0], results[1].stderr
    dense, packed = (json.loads(result.stdout)["perplexity"] for result in results)
    assert packed == pytest.approx(dense, rel=1e-4)


def test_refusals(pruned, invoke, tmp_path):
    result = invoke("pack", tmp_path, tmp_path / "packed")
    assert result.exit_code == 2 and "no config.json" in result.stderr
    result = invoke("unpack", pruned, tmp_path / "back")
    assert result.exit_code == 2 and "holds no model.stun.safetensors" in result.stderr
    invoke("pack", pruned, tmp_path / "packed", "--quiet")
    result = invoke("pack", pruned, tmp_path / "packed")
    assert result.exit_code == 2 and "exists" in result.stderr
    assert invoke("pack", pruned, tmp_path / "packed", "--force", "--quiet").exit_code == 0
    result = invoke("prune", tmp_path / "packed", tmp_path / "out", "--no-calibration")
    assert result.exit_code == 2 and "stun-ext unpack" in result.stderr


def test_a_dense_checkpoint_is_packed_in_vain(olmoe, invoke, tmp_path):
    result = invoke("pack", olmoe, tmp_path / "packed")
    assert result.exit_code == 0 and "0 of 32 packed" in result.stdout and "pruned?" in result.stdout
