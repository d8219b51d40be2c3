# SPDX-License-Identifier: Apache-2.0
"""``stun-ext bench``: that it measures both, adds up bytes and refuses; speeds are for `benchmarks/`."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def pruned(olmoe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "pruned"
    model = AutoModelForCausalLM.from_pretrained(olmoe, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter[torch.rand(parameter.shape, generator=generator) < 0.7] = 0
    model.save_pretrained(folder)
    return folder


def test_json(pruned, invoke):
    result = invoke(
        "bench", pruned, "--batch-size", 2, "--new-tokens", 6, "--repeats", 1, "--json", "--quiet"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["dense_bytes"] == 2 * 8 * 3 * 16 * 32 * 4
    assert document["packed_bytes"] < document["dense_bytes"]
    whole = sum(p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(pruned).parameters())
    assert document["other_bytes"] + document["dense_bytes"] == whole
    assert "eager" in document["dense_tokens_per_second"]
    fastest = max(document["dense_tokens_per_second"].values())
    assert document["speedup"] == pytest.approx(document["packed_tokens_per_second"] / fastest)
    assert document["same_tokens"] == 1.0  # float32


def test_table_and_refusals(pruned, invoke, tmp_path):
    result = invoke("bench", pruned, "--new-tokens", 3, "--repeats", 1)
    assert result.exit_code == 0 and "decoding, tokens/s" in result.stdout, result.stderr
    result = invoke("bench", pruned, "--new-tokens", 1)
    assert result.exit_code == 2 and "new_tokens must be at least 2, got 1" in result.stderr
    invoke("pack", pruned, tmp_path / "packed", "--quiet")
    result = invoke("bench", tmp_path / "packed")
    assert result.exit_code == 2 and "stun-ext unpack" in result.stderr
