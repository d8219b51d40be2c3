# SPDX-License-Identifier: Apache-2.0
"""stun_ext.prune end to end on tiny random models; the report is held against an independent count."""

import copy
import json

import numpy as np
import pytest
import torch

import stun_ext
from stun_ext import Recipe


def experts_of(model):
    return [(n, m) for n, m in model.named_modules() if n.endswith(".experts")]


def expert_weights(model):
    return [
        p for _, m in experts_of(model) for n, p in m.named_parameters(recurse=False) if n.endswith("_proj")
    ]


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, state, config):
    now = model.state_dict()
    return (
        now.keys() == state.keys()
        and all(torch.equal(now[k], state[k]) for k in state)
        and model.config.to_dict() == config
    )


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("sparsity", [0.5, 0.65])
def test_the_asked_total_is_met_and_counted(make_model, tokens, family, sparsity):
    model = make_model(family)
    before = sum(p.numel() for p in expert_weights(model))
    report = stun_ext.prune(model, calibration=tokens, sparsity=sparsity, expert_sparsity=0.25)
    after = sum(p.numel() for p in expert_weights(model))
    zeros = sum(int((p == 0).sum()) for p in expert_weights(model))
    assert abs((before - after + zeros) / before - sparsity) < 1e-3
    assert report.sparsity == pytest.approx((before - after + zeros) / before)
    assert (report.parameters_before, report.parameters_after, report.zeros) == (before, after, zeros)
    assert report.expert_sparsity == 0.25
    assert report.model_parameters_after == sum(p.numel() for p in model.parameters())
    assert all(len(layer.kept) == 6 for layer in report.layers)
    with torch.no_grad():
        assert torch.isfinite(model(tokens[:2]).logits).all()


def test_only_experts_and_routers_change(make_model, tokens):
    model = make_model()
    before = state_of(model)
    stun_ext.prune(model, calibration=tokens, expert_sparsity=0.25)
    for name, tensor in model.state_dict().items():
        if ".mlp." not in name:
            assert torch.equal(tensor, before[name]), name


def test_kept_rows_are_the_originals(make_model, tokens):
    model = make_model()
    before = state_of(model)
    report = stun_ext.prune(model, calibration=tokens, expert_sparsity=0.25)
    for layer in report.layers:
        router = model.state_dict()[f"{layer.name}.gate.weight"]
        assert torch.equal(router, before[f"{layer.name}.gate.weight"][layer.kept])
        for name in ("gate_up_proj", "down_proj"):
            now, then = (s[f"{layer.name}.experts.{name}"] for s in (model.state_dict(), before))
            kept = now != 0
            assert torch.equal(now[kept], then[layer.kept][kept])


def test_weights_go_by_wanda_on_the_norms_of_their_own_tokens(make_model, tokens):
    """Against torch's stable sort on the statistics of the same pass."""
    model = make_model()
    dense = state_of(model)
    statistics = stun_ext.collect_statistics(model, calibration=tokens)
    stun_ext.prune(model, statistics=statistics, sparsity=0.5, expert_sparsity=0.0)
    for layer, stats in enumerate(statistics.layers):
        for name in ("gate_up_proj", "down_proj"):
            weight = dense[f"model.layers.{layer}.mlp.experts.{name}"]
            score = weight.abs() * stats.input_sq_norm[name].sqrt()[:, None, :]
            lowest = score.sort(dim=-1, stable=True).indices[..., : weight.shape[-1] // 2]
            expected = weight.scatter(-1, lowest, 0.0)
            assert torch.equal(model.state_dict()[f"model.layers.{layer}.mlp.experts.{name}"], expected)


def test_same_statistics_same_result_whatever_the_threads(make_model, tokens):
    dense = make_model()
    statistics = stun_ext.collect_statistics(dense, calibration=tokens)
    states = []
    for threads in (1, 2, 5):
        stun_ext.ops.set_num_threads(threads)
        model = copy.deepcopy(dense)
        stun_ext.prune(model, statistics=statistics, sparsity=0.6)
        states.append(state_of(model))
    assert all(torch.equal(states[0][k], s[k]) for s in states[1:] for k in s)


def test_every_criterion_and_representative_runs(make_model, tokens):
    dense = make_model()
    statistics = stun_ext.collect_statistics(dense, calibration=tokens)
    recipes = [
        Recipe(criterion=c, expert_sparsity=0.25) for c in ("reap", "frequency", "man", "msan", "random")
    ]
    recipes += [
        Recipe(
            criterion="similarity",
            linkage=linkage,
            representative=representative,
            similarity=similarity,
            expert_sparsity=0.25,
        )
        for linkage in ("star", "complete", "average", "single")
        for representative in ("nearest", "mean", "score")
        for similarity in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.3))
    ]
    for recipe in recipes:
        model = copy.deepcopy(dense)
        report = stun_ext.prune(model, statistics=statistics, recipe=recipe)
        assert abs(report.sparsity - 0.5) < 1e-3, recipe
        assert {len(layer.kept) for layer in report.layers} == {6}


def test_mean_reconstruction_averages_weights_router_rows_and_norms(make_model, tokens):
    model = make_model()
    before = state_of(model)
    report = stun_ext.prune(
        model, calibration=tokens, criterion="similarity", representative="mean", mean_limit=9, expert_sparsity=0.25,
        weight_method="none",
    )  # fmt: skip
    averaged = [(layer, kept, members) for layer in report.layers for kept, members in layer.averaged.items()]
    assert averaged
    for layer, kept, members in averaged:
        position = layer.kept.index(kept)
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            key = f"{layer.name}.{name}"
            torch.testing.assert_close(model.state_dict()[key][position], before[key][members].mean(0))


def test_owl_spreads_and_meets_the_total(make_model, tokens):
    model = make_model()
    report = stun_ext.prune(model, calibration=tokens, weight_method="owl", owl_threshold=2.0, sparsity=0.6)
    asked = [layer.asked_weight_sparsity for layer in report.layers]
    assert max(asked) - min(asked) > 1e-3
    assert max(asked) - min(asked) <= 2 * 0.08 + 1e-9
    assert abs(report.sparsity - 0.6) < 1e-3


def test_owl_reads_mean_norms_so_that_usage_does_not_count(make_model, tokens):
    """The layer sparsities follow from D by the paper's formula, D being computed here from plain loops."""
    model = make_model()
    statistics = stun_ext.collect_statistics(model, calibration=tokens)
    outliers = []
    for layer, stats in zip(model.model.layers, statistics.layers, strict=True):
        scores = []
        for expert in range(8):
            for name in ("gate_up_proj", "down_proj"):
                mean = stats.input_sq_norm[name][expert] / stats.token_count[expert]
                scores.append((getattr(layer.mlp.experts, name)[expert].abs() * mean.sqrt()).flatten())
        scores = torch.cat(scores)
        outliers.append(100 * float((scores > 3 * scores.mean()).float().mean()))
    assert min(int(stats.token_count.min()) for stats in statistics.layers) > 0  # no starved expert here
    r = (np.array(outliers) - min(outliers)) / (max(outliers) - min(outliers)) * 2 * 0.1
    expected = 1 - (r - r.mean() + 0.4)
    report = stun_ext.prune(
        model,
        statistics=statistics,
        sparsity=0.6,
        expert_sparsity=0.0,
        weight_method="owl",
        owl_threshold=3.0,
        owl_lambda=0.1,
    )
    np.testing.assert_allclose([layer.asked_weight_sparsity for layer in report.layers], expected, atol=2e-3)


@pytest.mark.parametrize("method", ["gated_wanda", "magnitude"])
def test_other_weight_methods_meet_the_total(make_model, tokens, method):
    report = stun_ext.prune(make_model(), calibration=tokens, weight_method=method, sparsity=0.6)
    assert abs(report.sparsity - 0.6) < 1e-3


def test_pattern(make_model, tokens):
    model = make_model()
    report = stun_ext.prune(model, calibration=tokens, pattern="2:4")
    for weight in expert_weights(model):
        blocks = (weight != 0).reshape(*weight.shape[:-1], -1, 4).sum(-1)
        assert (blocks <= 2).all()
    assert report.weight_sparsity == pytest.approx(0.5) and report.asked_sparsity is None
    with pytest.raises(ValueError, match=r"2:5.*multiples of 5.*32"):
        stun_ext.prune(make_model(), calibration=tokens, pattern="2:5")


def test_stage1_alone(make_model, tokens):
    model = make_model()
    report = stun_ext.prune(model, calibration=tokens, weight_method="none", sparsity=0.25)
    assert report.expert_sparsity == 0.25 and report.zeros == 0 and report.sparsity == 0.25


def test_without_data_router_rows_and_magnitudes_decide(make_model):
    model = make_model()
    report = stun_ext.prune(model, calibration=False, sparsity=0.6)
    assert (report.recipe.criterion, report.recipe.weight_method) == ("similarity", "magnitude")
    assert report.calibration.startswith("none") and report.calibration_tokens == 0
    assert abs(report.sparsity - 0.6) < 1e-3


@pytest.mark.parametrize(
    "settings", [{"weight_method": "wanda"}, {"criterion": "reap"}, {"similarity": (1, 1)}]
)
def test_without_data_what_needs_it_is_refused(make_model, settings):
    with pytest.raises(ValueError, match="need calibration data"):
        stun_ext.prune(make_model(), calibration=False, sparsity=0.6, **settings)


def test_the_bare_call_samples_from_the_model(make_model):
    model = make_model()
    report = stun_ext.prune(model, num_calibration_samples=4, max_seq_length=16)
    assert "sampled" in report.calibration.lower()
    assert abs(report.sparsity - 0.5) < 1e-3


def test_self_sampling_is_seeded(make_model):
    reports = [
        stun_ext.prune(make_model(), num_calibration_samples=4, max_seq_length=16, seed=s) for s in (0, 0, 1)
    ]
    assert reports[0].kept == reports[1].kept
    assert reports[0].to_dict()["layers"] == reports[1].to_dict()["layers"]


def test_dry_run_decides_the_same_and_changes_nothing(make_model, tokens):
    model = make_model()
    state, config = state_of(model), model.config.to_dict()
    planned = stun_ext.prune(model, calibration=tokens, sparsity=0.6, dry_run=True)
    assert unchanged(model, state, config) and planned.dry_run
    done = stun_ext.prune(model, calibration=tokens, sparsity=0.6)
    assert planned.kept == done.kept
    assert planned.sparsity == pytest.approx(done.sparsity, abs=1e-3)
    assert planned.model_parameters_after == done.model_parameters_after


@pytest.mark.parametrize("phase", ["calibrate", "decide"])
def test_an_interrupt_before_the_change_leaves_the_model_as_it_was(make_model, tokens, phase):
    model = make_model()
    state, config = state_of(model), model.config.to_dict()

    def interrupt(name, done, total):
        if name == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stun_ext.prune(model, calibration=tokens, progress=interrupt)
    assert unchanged(model, state, config)
    stun_ext.prune(model, calibration=tokens)  # and it still prunes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_sparsity": 0.9, "sparsity": 0.95}, "at least 2"),
        ({"expert_sparsity": 0.5, "sparsity": 0.3}, "below the 0.5"),
        ({"calibration": []}, "empty"),
        ({"calibration": ["some text"]}, "tokenizer"),
        ({"sparsity": 2}, "sparsity"),
        ({"sparsty": 0.5}, "sparsty"),
        ({"scope": ("attention",), "expert_sparsity": 0.5}, "scope"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(make_model, tokens, settings, message):
    model = make_model()
    state, config = state_of(model), model.config.to_dict()
    forward = model.forward
    model.forward = lambda *a, **k: pytest.fail("a forward pass ran before the refusal")
    with pytest.raises(ValueError, match=message):
        stun_ext.prune(model, **{"calibration": tokens, **settings})
    model.forward = forward
    assert unchanged(model, state, config)


def test_nan_weights_are_refused_by_name(make_model, tokens):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3, 2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        stun_ext.prune(model, calibration=False, sparsity=0.6)


def test_dense_models_get_stage_two_alone(make_model, tokens):
    model = make_model("llama")
    before = state_of(model)
    report = stun_ext.prune(model, calibration=tokens, sparsity=0.5)
    assert report.recipe.scope == ("attention", "mlp") and report.kept_experts == 0
    assert abs(report.sparsity - 0.5) < 1e-3
    for name, tensor in model.state_dict().items():
        pruned = name.endswith("_proj.weight")
        assert (abs(float((tensor == 0).float().mean()) - 0.5) < 0.01) == pruned, name
        if not pruned:
            assert torch.equal(tensor, before[name])
    with pytest.raises(ValueError, match="no routed experts"):
        stun_ext.prune(make_model("llama"), calibration=tokens, expert_sparsity=0.25)


def test_wider_scope_counts_over_all_of_it(make_model, tokens):
    model = make_model("deepseek_v3")
    report = stun_ext.prune(
        model, calibration=tokens, scope=("experts", "shared_experts", "attention"), sparsity=0.6
    )
    assert abs(report.sparsity - 0.6) < 1e-3
    assert report.parameters_before > sum(p.numel() for p in expert_weights(make_model("deepseek_v3")))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("linkage", ["star", "complete"])
def test_global_counts_save_and_load(make_model, tokens, tmp_path, family, linkage):
    model = make_model(family)
    report = stun_ext.prune(
        model,
        calibration=tokens,
        criterion="similarity",
        linkage=linkage,
        per_layer="global",
        expert_sparsity=0.3,
        sparsity=0.6,
    )
    assert (
        report.requested_experts == round(0.7 * 24)
        and abs(report.kept_experts - report.requested_experts) <= 1
    )
    assert abs(report.sparsity - 0.6) < 1e-3
    stun_ext.save_pretrained(model, tmp_path / "out")
    again = stun_ext.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens[:2]).logits, model(tokens[:2]).logits)


def test_statistics_of_another_model_are_refused(make_model, tokens):
    statistics = stun_ext.collect_statistics(make_model(), calibration=tokens)
    with pytest.raises(ValueError, match="statistics"):
        stun_ext.prune(make_model(num_experts=16), statistics=statistics)


def test_saved_statistics_decide_the_same(make_model, tokens, tmp_path):
    dense = make_model()
    statistics = stun_ext.collect_statistics(dense, calibration=tokens)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = stun_ext.Statistics.load(tmp_path / "statistics.safetensors")
    one, two = copy.deepcopy(dense), copy.deepcopy(dense)
    stun_ext.prune(one, statistics=statistics, sparsity=0.6)
    stun_ext.prune(two, statistics=loaded, sparsity=0.6)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_starved_experts_reach_the_sparsity_and_are_named(make_model, tokens):
    model = make_model()
    with torch.no_grad():  # a router row that never wins
        for layer in model.model.layers:
            layer.mlp.gate.weight[5] = 0
            layer.mlp.gate.weight[5, 0] = -1e4 * torch.sign(layer.mlp.gate.weight[0, 0])
    report = stun_ext.prune(model, calibration=tokens[:1, :8], sparsity=0.5, expert_sparsity=0.0)
    starved = [layer for layer in report.layers if layer.never_routed]
    assert starved and any("no calibration token" in warning for warning in report.warnings)
    for layer in starved:
        weight = model.state_dict()[f"{layer.name}.experts.gate_up_proj"]
        for expert in layer.never_routed:
            assert (weight[expert] == 0).sum(-1).eq(16).all()


def test_report_is_plain_json_and_prints(make_model, tokens):
    report = stun_ext.prune(make_model(), calibration=tokens, sparsity=0.6)
    values = json.loads(report.to_json())
    assert values["sparsity"] == report.sparsity and values["recipe"]["sparsity"] == 0.6
    assert values["layers"][0]["kept"] == report.layers[0].kept
    assert values["versions"]["stun_ext"] == stun_ext.__version__
    text = str(report)
    assert "asked 60.00%" in text and "model.layers.0.mlp" in text
    layer = report.layers[0]
    assert layer.kurtosis_before > 1 and layer.kurtosis_after_experts > 1 and layer.kurtosis_after_weights > 1


def test_help_lists_the_recipes_fields():
    import inspect

    parameters = inspect.signature(stun_ext.prune).parameters
    assert "sparsity" in parameters and parameters["weight_method"].default == "wanda"


def test_quantised_models_are_refused_with_advice(make_model, tokens):
    model = make_model()
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match="quanti"):
        stun_ext.prune(model, calibration=tokens)
