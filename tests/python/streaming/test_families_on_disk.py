# SPDX-License-Identifier: Apache-2.0
"""File to file, each family ends as pruning it in memory and saving it does, and stock Transformers loads it."""

from __future__ import annotations

import json

import pytest
import torch
from model_families import FAMILIES, logits, make_model, reload
from stored_models import read, same

import stun_ext
from stun_ext.checkpoint import save_pretrained

# Their experts have no single matrices in memory, so that "nearest" cannot be asked there.
_BY_ROUTER = {"dbrx", "jetmoe"}


def _both(family, tmp_path, **settings):
    model = make_model(family)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    in_memory = stun_ext.prune(model, calibration=False, weight_method="none", **settings)
    save_pretrained(model, tmp_path / "memory", source=tmp_path / "in")
    streamed = stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", **settings)
    return model, in_memory, streamed


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_as_in_memory(family, tmp_path):
    representative = "router" if family in _BY_ROUTER else "nearest"
    model, in_memory, streamed = _both(
        family, tmp_path, expert_sparsity=0.5, representative=representative, criterion="similarity"
    )
    assert streamed.kept == in_memory.kept
    for streamed_row, row in zip(streamed.layers, in_memory.layers, strict=True):
        assert streamed_row.clusters == row.clusters
        assert streamed_row.parameters_before == row.parameters_before
        assert streamed_row.parameters_after == row.parameters_after
    same(read(tmp_path / "out"), read(tmp_path / "memory"))
    assert _config(tmp_path / "out") == _config(tmp_path / "memory")
    assert torch.equal(logits(reload(tmp_path / "out")), logits(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"linkage": "star"},
        {"linkage": "average", "normalize_router": True},
        {"criterion": "random", "seed": 3},
        {"representative": "router", "expert_multiple": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_settings(family, settings, tmp_path):
    _, in_memory, streamed = _both(
        family, tmp_path, **{"criterion": "similarity", "sparsity": 0.4, **settings}
    )
    assert streamed.kept == in_memory.kept
    assert all(len(kept) < 8 for kept in streamed.kept.values())
    same(read(tmp_path / "out"), read(tmp_path / "memory"))


@pytest.mark.parametrize("linkage", ["star", "complete"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_layers_that_keep_different_numbers(family, linkage, tmp_path):
    settings = {"criterion": "similarity", "per_layer": "global", "linkage": linkage, "expert_sparsity": 0.4}
    model, in_memory, streamed = _both(family, tmp_path, **settings)
    assert streamed.kept == in_memory.kept and len({len(ids) for ids in streamed.kept.values()}) > 1
    assert streamed.threshold == in_memory.threshold and streamed.warnings == in_memory.warnings
    same(read(tmp_path / "out"), read(tmp_path / "memory"))
    assert _config(tmp_path / "out")["per_layer_config"] == _config(tmp_path / "memory")["per_layer_config"]
    loaded = reload(tmp_path / "out", stun_ext.from_pretrained)
    assert torch.equal(logits(loaded), logits(model))


def test_clusters_of_three_and_more_read_the_weights(tmp_path):
    """The member nearest to the mean of a large cluster is another than the lowest, and the same as in memory."""
    _, in_memory, streamed = _both(
        "mixtral", tmp_path, expert_sparsity=0.75, criterion="similarity", linkage="single"
    )
    assert streamed.kept == in_memory.kept
    sizes = [row.clusters.count(label) for row in streamed.layers for label in row.clusters]
    assert max(sizes) >= 3
    lowest = [sorted(set(row.clusters)) for row in streamed.layers]
    assert lowest != [row.kept for row in streamed.layers]


def _config(folder):
    return json.loads((folder / "config.json").read_text())
