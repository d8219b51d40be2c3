# SPDX-License-Identifier: Apache-2.0
"""Statistics: what is saved is what is loaded, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stun_ext.statistics import LayerStatistics, Statistics


def layer(num_experts: int = 3) -> LayerStatistics:
    count = torch.arange(num_experts)
    pairs = torch.ones(num_experts, num_experts, dtype=torch.int64).fill_diagonal_(0)
    return LayerStatistics(
        token_count=count,
        norm_sum=count * 1.5,
        norm_sq_sum=count * 2.25,
        weighted_norm_sum=count * 0.1,
        coactivation=pairs,
        gram=torch.rand(num_experts, num_experts, dtype=torch.float64),
        input_sq_norm={"gate_up_proj": torch.rand(num_experts, 5), "down_proj": torch.rand(num_experts, 4)},
        gated_input_sq_norm={
            "gate_up_proj": torch.rand(num_experts, 5),
            "down_proj": torch.rand(num_experts, 4),
        },
        num_tokens=7,
        starved=[0],
    )


def statistics() -> Statistics:
    first, second = layer(), layer(4)
    for found in (first, second):
        for name in ("norm_sum", "norm_sq_sum", "weighted_norm_sum"):
            setattr(found, name, getattr(found, name).double())
    return Statistics([first, second], {"model.layers.0.q_proj": torch.rand(6)}, "two books, ‖x‖", 5, 40)


def test_round_trip(tmp_path: Path) -> None:
    want = statistics()
    path = tmp_path / "statistics.safetensors"
    path.write_text("an older file")
    want.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    got = Statistics.load(path)
    assert (got.source, got.num_samples, got.num_tokens) == (want.source, 5, 40)
    assert got.linears.keys() == want.linears.keys()
    assert torch.equal(got.linears["model.layers.0.q_proj"], want.linears["model.layers.0.q_proj"])
    for a, b in zip(got.layers, want.layers, strict=True):
        assert (a.num_tokens, a.starved, a.num_experts) == (b.num_tokens, b.starved, b.num_experts)
        torch.testing.assert_close(vars(a), vars(b), rtol=0.0, atol=0.0)


def test_empty_statistics_round_trip(tmp_path: Path) -> None:
    Statistics([], source="nothing").save(tmp_path / "s")
    assert Statistics.load(tmp_path / "s") == Statistics([], source="nothing")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "token_count",
            torch.zeros(3),
            "token_count must be torch.int64 with shape \\[3\\], got torch.float32 \\[3\\]",
        ),
        (
            "gram",
            torch.zeros(3, 2).double(),
            "gram must be torch.float64 with shape \\[3, 3\\], .* \\[3, 2\\]",
        ),
        (
            "norm_sum",
            torch.tensor([0.0, 1.0, torch.nan]).double(),
            "norm_sum must be finite and not negative",
        ),
        (
            "norm_sq_sum",
            torch.tensor([0.0, -1.0, 1.0]).double(),
            "norm_sq_sum must be finite and not negative",
        ),
        ("coactivation", torch.eye(3).long(), "coactivation must be symmetric with a zero diagonal"),
        (
            "coactivation",
            torch.ones(3, 3).long().triu(1),
            "coactivation must be symmetric with a zero diagonal",
        ),
        ("input_sq_norm", {}, "must have the same names"),
        (
            "input_sq_norm",
            {"gate_up_proj": torch.zeros(2, 5), "down_proj": torch.zeros(3, 4)},
            "input_sq_norm of gate_up_proj must be torch.float32 with shape \\[3, inputs\\], .* \\[2, 5\\]",
        ),
        (
            "gated_input_sq_norm",
            {"gate_up_proj": torch.zeros(3, 5), "down_proj": torch.full((3, 4), torch.inf)},
            "gated_input_sq_norm of down_proj must be finite and not negative",
        ),
        ("starved", [], "starved must list the experts whose token_count is 0, got \\[\\]"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    broken = statistics()
    setattr(broken.layers[0], name, value)
    with pytest.raises(ValueError, match=rf"\[Statistics\.save\] MoE layer 0: .*{message}"):
        broken.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.ones(2, 2), torch.ones(2).double(), -torch.ones(2)])
def test_linears_that_do_not_fit_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[Statistics\.save\]: linears\['q'\] must be"):
        Statistics([], {"q": value}).save(tmp_path / "s")


def test_loading_checks_too(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(FileNotFoundError, match=r"\[Statistics\.load\] .*s\.safetensors: no such file"):
        Statistics.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"\[Statistics\.load\] .*: not a safetensors file"):
        Statistics.load(path)
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"format must be 'stun_ext\.statistics\.v1', got None"):
        Statistics.load(path)

    statistics().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change, message in [
        ({"layers.1.gram": None}, "incomplete, 'layers.1.gram' is missing"),
        ({"layers.2.gram": torch.ones(1)}, "unknown tensor 'layers.2.gram'"),
        ({"layers.1.coactivation": torch.eye(4).long()}, "MoE layer 1: coactivation must be symmetric"),
    ]:
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        safetensors.torch.save_file(changed, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            Statistics.load(path)
    safetensors.torch.save_file(tensors, path, metadata={**metadata, "statistics": "{}"})
    with pytest.raises(ValueError, match="incomplete, 'layers' is missing"):
        Statistics.load(path)
