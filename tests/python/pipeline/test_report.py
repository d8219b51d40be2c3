# SPDX-License-Identifier: Apache-2.0
"""The report's arithmetic by hand, and the model card."""

import json
import math

import pytest

from stun_ext.model_card import model_card
from stun_ext.recipe import Recipe
from stun_ext.report import LayerReport, PruneReport


def report_of(layers, **settings):
    return PruneReport(
        recipe=Recipe(**settings),
        family="mixtral",
        calibration="4 sequences, 64 tokens: by hand",
        calibration_tokens=64,
        layers=layers,
        versions={"stun_ext": "1.2.3"},
    )


def test_sparsities_add_up():
    layers = [
        LayerReport(
            "model.layers.0.mlp", 0, 800, 600, zeros=150, num_experts_before=8, kept=[0, 1, 2, 3, 5, 7]
        ),
        LayerReport("model.layers.1.mlp", 1, 800, 800, zeros=100, num_experts_before=8, kept=list(range(8))),
    ]
    report = report_of(layers, sparsity=0.3)
    assert layers[0].weight_sparsity == 0.25 and layers[0].sparsity == (200 + 150) / 800
    assert report.sparsity == (200 + 250) / 1600
    assert report.expert_sparsity == pytest.approx(2 / 16)
    assert report.weight_sparsity == 250 / 1400
    assert report.kept == {0: [0, 1, 2, 3, 5, 7], 1: list(range(8))}
    assert "2 of 16 experts removed" in report.summary() and "asked 30.00%" in report.summary()


def test_nan_becomes_null_in_json():
    report = report_of([LayerReport("layer", 0, 4, 4)])
    assert math.isnan(report.layers[0].kurtosis_before)
    assert json.loads(report.to_json())["layers"][0]["kurtosis_before"] is None


def test_an_empty_scope_divides_by_nothing():
    assert report_of([]).sparsity == report_of([]).weight_sparsity == report_of([]).expert_sparsity == 0.0


@pytest.mark.parametrize("base", ["org/model", "a/path/of/this/machine"])
def test_card_names_the_base_but_no_path(base):
    layers = [LayerReport("layer", 0, 8, 8, num_experts_before=2, kept=[0, 1])]
    card = model_card(report_of(layers), base_model=base, name="pruned")
    assert card.startswith("---\n") and "AutoModelForCausalLM" in card and "sparsity: 0.5" in card
    assert ("base_model: org/model" in card) == (base == "org/model")
    assert "a/path" not in card


def test_card_of_uneven_layers_says_how_to_load_them():
    layers = [
        LayerReport("a", 0, 8, 8, num_experts_before=4, kept=[0, 1]),
        LayerReport("b", 1, 8, 8, num_experts_before=4, kept=[0]),
    ]
    card = model_card(report_of(layers), base_model="org/model", name="pruned")
    assert 'stun_ext.from_pretrained("pruned")' in card and "1 to 2 of 4 per layer" in card
