# SPDX-License-Identifier: Apache-2.0
"""inspect tells what a model is made of, from its config and the headers of its files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stun_ext.cli.inspect import ranges


def test_olmoe(invoke, olmoe: Path) -> None:
    found = json.loads(invoke("inspect", olmoe, "--json").stdout)
    assert found["family"] == "olmoe"
    assert found["num_layers"] == found["num_moe_layers"] == 2
    assert found["expert_count_keys"] == ["num_experts"]
    assert found["refusals"] == []
    for index, layer in enumerate(found["layers"]):
        assert layer["index"] == index
        assert (layer["num_experts"], layer["top_k"], layer["n_group"], layer["topk_group"]) == (8, 2, 1, 1)
        assert layer["parameters_per_expert"] == 3 * 32 * 16
        assert layer["legal_expert_counts"] == [2, 3, 4, 5, 6, 7, 8]
        assert layer["correction_biases"] == layer["shared_experts"] == []
        assert layer["supports_statistics"]
    tensors = load_file(olmoe / "model.safetensors")
    experts = {name: tensor for name, tensor in tensors.items() if ".experts." in name}
    assert found["parameters"]["total"] == sum(t.numel() for t in tensors.values())
    assert found["parameters"]["experts"] == sum(t.numel() for t in experts.values()) == 2 * 8 * 3 * 32 * 16
    assert found["bytes"]["total"] == sum(t.nbytes for t in tensors.values())
    assert found["bytes"]["experts"] == sum(t.nbytes for t in experts.values())
    assert found["bytes"]["dtypes"] == ["BF16"]
    assert found["bytes"]["estimated"] is False


def test_groups_biases_shared_experts(invoke, deepseek: Path) -> None:
    found = json.loads(invoke("inspect", deepseek, "--json").stdout)
    assert (found["num_layers"], found["num_moe_layers"]) == (3, 2)
    assert [layer["index"] for layer in found["layers"]] == [1, 2]
    for layer in found["layers"]:
        assert (layer["num_experts"], layer["top_k"], layer["n_group"], layer["topk_group"]) == (16, 4, 4, 2)
        assert layer["correction_biases"] == ["gate.e_score_correction_bias"]
        assert layer["shared_experts"] == ["shared_experts"]
        assert layer["legal_expert_counts"] == [8, 12, 16]  # equal groups of at least 2, 2 groups hold 4
    assert found["bytes"] is None
    text = invoke("inspect", deepseek).stdout
    for words in (
        "8-16 step 4",
        "gate.e_score_correction_bias",
        "shared_experts",
        "4, 2 chosen per token",
        "unknown",
    ):
        assert words in text


def test_dense_model(invoke, llama: Path) -> None:
    result = invoke("inspect", llama)
    assert result.exit_code == 0
    assert "stage 2 alone" in result.stdout
    assert json.loads(invoke("inspect", llama, "--json").stdout)["layers"] == []


def test_no_weights_are_read(invoke, olmoe: Path, tmp_path: Path) -> None:
    """A file that ends after its header is enough."""
    copy = tmp_path / "copy"
    shutil.copytree(olmoe, copy)
    path = copy / "model.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    path.write_bytes(path.read_bytes()[: 8 + length])
    whole, cut = (json.loads(invoke("inspect", folder, "--json").stdout) for folder in (olmoe, copy))
    assert cut["bytes"] == whole["bytes"]


def test_a_file_that_is_no_safetensors_is_refused(invoke, olmoe: Path, tmp_path: Path) -> None:
    shutil.copy(olmoe / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x07")
    result = invoke("inspect", tmp_path)
    assert result.exit_code == 2
    assert "model.safetensors is not a safetensors file" in result.stderr


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([4, 5], "4, 5"),
        ([2, 3, 4, 5], "2-5"),
        ([8, 16, 24, 32], "8-32 step 8"),
        ([4, 6, 9], "4, 6, 9"),
        ([1, 2, 3, 10, 20, 30], "1-3, 10-30 step 10"),
    ],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
