# SPDX-License-Identifier: Apache-2.0
"""prune --streaming: from file to file, with bytes told and the model never built with its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def test_it_writes_what_it_says(invoke, olmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("prune", olmoe, out, "--streaming", "--expert-sparsity", "0.25", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    before, after = load_file(olmoe / "model.safetensors"), load_file(out / "model.safetensors")
    assert document["out"] == str(out)
    assert document["bytes_before"] == sum(t.numel() * t.element_size() for t in before.values())
    assert document["bytes_after"] == sum(t.numel() * t.element_size() for t in after.values())
    for layer in document["layers"]:
        rows = f"model.layers.{layer['index']}.mlp.gate.weight"
        assert len(layer["kept"]) == 6 and torch.equal(after[rows], before[rows][layer["kept"]])
    assert json.loads((out / "stun_report.json").read_text())["kept_experts"] == 12
    assert (out / "tokenizer.json").read_bytes() == (olmoe / "tokenizer.json").read_bytes()
    assert (out / "README.md").is_file()
    assert AutoModelForCausalLM.from_pretrained(out).config.num_experts == 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_zeroes_weights_by_magnitude(invoke, olmoe: Path, tmp_path: Path) -> None:
    streamed, in_memory = tmp_path / "streamed", tmp_path / "in_memory"
    options = ("--sparsity", "0.5", "--expert-sparsity", "0.25", "--weight-method", "magnitude")
    result = invoke("prune", olmoe, streamed, "--streaming", *options, "--json")
    assert result.exit_code == 0, result.stderr
    document, after = json.loads(result.stdout), load_file(streamed / "model.safetensors")
    for layer in document["layers"]:
        found = [w for name, w in after.items() if f"layers.{layer['index']}.mlp.experts." in name]
        assert layer["zeros"] == sum(int((w == 0).sum()) for w in found) > 0
    assert document["sparsity"] == pytest.approx(0.5, abs=0.01)
    again = invoke("prune", olmoe, in_memory, *options, "--no-calibration")
    assert again.exit_code == 0, again.stderr
    other = load_file(in_memory / "model.safetensors")
    assert after.keys() == other.keys() and all(torch.equal(after[name], other[name]) for name in after)


def test_dry_run_tells_the_bytes(invoke, olmoe: Path, tmp_path: Path) -> None:
    result = invoke("prune", olmoe, tmp_path / "out", "--streaming", "--sparsity", "0.5", "--dry-run")
    assert result.exit_code == 0, result.stderr
    size = sum(t.numel() * t.element_size() for t in load_file(olmoe / "model.safetensors").values())
    left = (
        size - 2 * 4 * (3 * 16 * 32 + 32) * 2
    )  # 2 layers, 4 experts of 3 matrices and a router row, 2 bytes
    assert f"{left:,} of {size:,} bytes of tensors would be kept" in result.stdout
    assert "nothing written (dry run)" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", "data.txt"], "contradicts --calibration data.txt"),
        (["--device", "cuda"], "contradicts --device cuda"),
        (["--dtype", "float16"], "contradicts --dtype float16"),
        (["--criterion", "reap"], "need calibration data"),
    ],
)
def test_contradictions(arguments: list[str], words: str, invoke, olmoe: Path, tmp_path: Path) -> None:
    result = invoke("prune", olmoe, tmp_path / "out", "--streaming", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
