# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from stun_ext.recipe import Recipe


def test_defaults_are_legal_and_frozen():
    recipe = Recipe()
    assert recipe.sparsity == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.sparsity = 0.4  # type: ignore[misc]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_saved_and_loaded_recipes_are_equal(tmp_path, suffix):
    recipe = Recipe(
        sparsity=0.65,
        similarity=(1, 0.25),
        criterion="similarity",
        pattern="2:4",
        scope=("experts", "attention"),
    )
    path = tmp_path / f"recipe.{suffix}"
    recipe.save(path)
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity": "half"}, "sparsity"),
        ({"expert_sparsity": 1.5}, "expert_sparsity"),
        ({"criterion": "best"}, "criterion"),
        ({"similarity": (0, 0)}, "similarity"),
        ({"similarity": (1, -1)}, "similarity"),
        ({"similarity": (1, 2, 3)}, "similarity"),
        ({"similarity": ("a", "b")}, "similarity"),
        ({"linkage": "ward"}, "linkage"),
        ({"representative": "first"}, "representative"),
        ({"representative_score": "hope"}, "representative_score"),
        ({"mean_limit": 1}, "mean_limit"),
        ({"per_layer": "ragged"}, "per_layer"),
        ({"expert_multiple": 0}, "expert_multiple"),
        ({"min_experts": 0}, "min_experts"),
        ({"weight_method": "sparsegpt!"}, "weight_method"),
        ({"weight_allocation": "dlp!"}, "weight_allocation"),
        ({"owl_threshold": -1.0}, "owl_threshold"),
        ({"owl_lambda": 0.9}, "owl_lambda"),
        ({"pattern": "4:4"}, "pattern"),
        ({"pattern": "0:4"}, "pattern"),
        ({"pattern": "2-4"}, "pattern"),
        ({"pattern": "2:4", "weight_allocation": "owl"}, "pattern"),
        ({"scope": ()}, "scope"),
        ({"scope": ("router",)}, "scope"),
        ({"scope": ("experts", "experts")}, "scope"),
        ({"num_calibration_samples": 0}, "num_calibration_samples"),
        ({"max_seq_length": 1}, "max_seq_length"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"normalize_router": "yes"}, "normalize_router"),
    ],
)
def test_an_illegal_value_names_its_field_and_itself(settings, named):
    with pytest.raises(ValueError, match=named) as error:
        Recipe(**settings)
    assert "[Recipe]" in str(error.value)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="'sparsty'"):
        Recipe.from_dict({"sparsty": 0.5})


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "- 1\n"), ("a.yaml", ": ["), ("a.json", "{")])
def test_unreadable_files_are_refused_by_name(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name):
        Recipe.load(path)


def test_owl_is_wanda_with_its_own_allocation():
    recipe = Recipe(weight_method="owl")
    assert (recipe.weight_method, recipe.weight_allocation) == ("wanda", "owl")


def test_lists_and_comma_text_are_accepted():
    assert Recipe(similarity="1,0.5").similarity == (1.0, 0.5)  # type: ignore[arg-type]
    assert Recipe(scope=["experts", "mlp"]).scope == ("experts", "mlp")  # type: ignore[arg-type]


def test_expert_share():
    assert Recipe(sparsity=0.3).expert_share(64) == 0  # the default rule leaves experts alone at low totals
    assert (
        Recipe(sparsity=0.65).expert_share(64) == Recipe(sparsity=0.65).expert_share() == pytest.approx(0.275)
    )
    assert Recipe(sparsity=0.65).expert_share(8) == pytest.approx(0.275 / 4)
    assert Recipe(sparsity=0.65, expert_sparsity=0.25).expert_share(8) == 0.25
    assert Recipe(sparsity=0.25, weight_method="none").expert_share(64) == 0.25
    # 2:4 halves what stage 1 leaves: 1 - (1 - 0.3) / 2 = 0.65
    assert Recipe(sparsity=0.65, pattern="2:4").expert_share(8) == pytest.approx(0.3)
    assert Recipe(sparsity=0.4, pattern="2:4").expert_share(8) == 0


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, True),
        ({"weight_method": "magnitude", "expert_sparsity": 0.0}, False),
        ({"weight_method": "magnitude", "criterion": "similarity"}, False),
        (
            {"weight_method": "magnitude", "criterion": "similarity", "similarity": (1, 1), "sparsity": 0.6},
            True,
        ),
        (
            {
                "weight_method": "magnitude",
                "criterion": "similarity",
                "representative": "score",
                "sparsity": 0.6,
            },
            True,
        ),
        ({"weight_method": "magnitude", "criterion": "random"}, False),
        ({"weight_method": "none", "criterion": "reap"}, True),
    ],
)
def test_needs_statistics(settings, needs):
    assert Recipe(**settings).needs_statistics is needs
