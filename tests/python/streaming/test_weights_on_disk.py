# SPDX-License-Identifier: Apache-2.0
"""Stage 2 from file to file: the bytes that the same request gives in memory, or that the plainest code gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from model_families import FAMILIES, logits, make_config, make_model, reload
from stored_models import Source, arctic, expected, expected_kept, flat, read, same, tree, write

import stun_ext
from stun_ext.checkpoint import save_pretrained
from stun_ext.models import analyze
from stun_ext.statistics import Statistics
from stun_ext.streaming import output

_WITHOUT_MATRICES = {"dbrx", "jetmoe"}  # refused in memory, too


def _tokens(model, seed=0):
    vocabulary = model.config.get_text_config().vocab_size
    return [torch.randint(0, vocabulary, (4, 24), generator=torch.Generator().manual_seed(seed))]


def _both(family, tmp_path, statistics=None, **settings):
    model = make_model(family)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    if statistics is not None:
        statistics = Statistics.load(statistics)
    data = {} if statistics is not None else {"calibration": False}
    in_memory = stun_ext.prune(model, statistics=statistics, **data, **settings)
    save_pretrained(model, tmp_path / "memory", source=tmp_path / "in")
    streamed = stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", statistics=statistics, **settings)
    return model, in_memory, streamed


def _agree(tmp_path, in_memory, streamed):
    same(read(tmp_path / "out"), read(tmp_path / "memory"))
    assert streamed.kept == in_memory.kept
    for one, other in zip(streamed.layers, in_memory.layers, strict=True):
        assert one.zeros == other.zeros > 0
        assert one.asked_weight_sparsity == other.asked_weight_sparsity
        assert one.parameters_after == other.parameters_after
    assert streamed.sparsity == in_memory.sparsity
    written = json.loads((tmp_path / "out" / "stun_report.json").read_text())
    assert written["zeros"] == in_memory.zeros


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in _WITHOUT_MATRICES])
def test_magnitude_ends_as_in_memory(family, tmp_path):
    model, in_memory, streamed = _both(
        family,
        tmp_path,
        weight_method="magnitude",
        sparsity=0.65,
        expert_sparsity=0.5,
        criterion="similarity",
    )
    _agree(tmp_path, in_memory, streamed)
    assert torch.equal(logits(reload(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("family", sorted(_WITHOUT_MATRICES))
def test_layouts_without_matrices_are_refused(family, tmp_path):
    make_model(family).save_pretrained(tmp_path / "in")
    with pytest.raises(ValueError, match="single weights cannot be pruned; remove whole experts alone"):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", weight_method="magnitude", sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_method": "magnitude", "pattern": "2:4", "expert_sparsity": 0.25},
        {"weight_method": "magnitude", "sparsity": 0.5, "expert_sparsity": 0},
        {"weight_method": "magnitude", "weight_allocation": "owl", "sparsity": 0.6},
        {"weight_method": "magnitude", "per_layer": "global", "sparsity": 0.6, "expert_sparsity": 0.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_settings_without_data(family, settings, tmp_path):
    if family != "mixtral" and settings.get("per_layer"):
        pytest.skip("routing of this family wants equal numbers")
    _, in_memory, streamed = _both(family, tmp_path, **settings)
    _agree(tmp_path, in_memory, streamed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_method": "owl", "sparsity": 0.7},
        {"weight_method": "gated_wanda", "criterion": "reap", "expert_sparsity": 0.5, "sparsity": 0.6},
        {"pattern": "4:8", "criterion": "similarity", "representative": "score", "expert_sparsity": 0.25},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_statistics_from_a_file(family, settings, tmp_path):
    model = make_model(family)
    stun_ext.collect_statistics(model, calibration=_tokens(model)).save(tmp_path / "statistics.safetensors")
    _, in_memory, streamed = _both(family, tmp_path, tmp_path / "statistics.safetensors", **settings)
    _agree(tmp_path, in_memory, streamed)
    assert streamed.calibration == in_memory.calibration
    assert streamed.warnings == in_memory.warnings


def test_statistics_of_another_model_are_refused(tmp_path):
    model = make_model("mixtral")
    found = stun_ext.collect_statistics(model, calibration=_tokens(model))
    model.save_pretrained(tmp_path / "in")
    wide = found.layers[0].input_sq_norm
    wide["down_proj"] = wide["down_proj"].repeat(1, 2)
    with pytest.raises(
        ValueError, match=r"down_proj needs norms of \d+ inputs, the statistics have those of"
    ):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", statistics=found)
    found.layers.pop()
    with pytest.raises(ValueError, match="experts per layer, the checkpoint has"):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", statistics=found)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def _smallest_to_zero(matrix, share):
    """By the plainest means: the rows together lose round(R·C·s), each an equal part, the smallest first."""
    values = matrix.float().numpy()
    rows, cols = values.shape
    ends = [row * round(rows * cols * share) // rows for row in range(rows + 1)]
    left = matrix.clone()
    for row in range(rows):
        gone = np.argsort(np.abs(values[row]), kind="stable")[: ends[row + 1] - ends[row]]
        left[row, torch.from_numpy(gone.copy())] = 0
    return left


def test_arctic(tmp_path):
    tensors, config = arctic()
    write(tmp_path / "in", tensors, config)
    settings = {"expert_sparsity": 0.25, "sparsity": 0.55, "representative": "router"}
    report = stun_ext.prune_checkpoint(
        tmp_path / "in", tmp_path / "out", weight_method="magnitude", criterion="similarity", **settings
    )
    kept = [expected_kept(tensors[f"model.layers.{n}.block_sparse_moe.gate.weight"], 6) for n in range(2)]
    share = (0.55 - 0.25) / 0.75
    wanted = expected(
        {n: _smallest_to_zero(t, share) if ".experts." in n else t for n, t in tensors.items()},
        lambda name: kept[int(name.split(".")[2])] if "layers" in name else None,
        r"block_sparse_moe\.gate",
    )
    same(read(tmp_path / "out"), wanted)
    assert report.zeros == sum(int((t == 0).sum()) for n, t in wanted.items() if ".experts." in n)
    assert report.sparsity == pytest.approx(0.55, abs=1e-3)


def test_flat_experts_do_not_tell_their_inputs(tmp_path):
    write(tmp_path / "in", *flat())
    with pytest.raises(ValueError, match="nothing says which of its dimensions are inputs"):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", weight_method="magnitude", sparsity=0.5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.float64])
def test_quantised_experts_are_refused_before_any_work(dtype, tmp_path):
    tensors, config = arctic()
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    tensors[name] = Source(3)(16, 24, dtype=torch.float32).to(dtype)
    if dtype == torch.float64:
        for other in list(tensors):
            if ".experts." in other:
                tensors[other] = tensors[other].double()
    else:
        for e in range(8):
            tensors[name.replace(".3.", f".{e}.") + "_scale_inv"] = torch.ones(1, 1)
    write(tmp_path / "in", tensors, config)
    words = "can be zeroed, got F64" if dtype == torch.float64 else "quantised experts cannot be zeroed; use"
    with pytest.raises(ValueError, match=words):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", weight_method="magnitude", sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nan_is_named_and_nothing_is_left(tmp_path):
    tensors, config = arctic()
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    tensors[name][2, 3] = float("nan")
    write(tmp_path / "in", tensors, config, files=1)
    with pytest.raises(ValueError, match=rf"{name}: .*must be finite, got nan in row 2"):
        stun_ext.prune_checkpoint(
            tmp_path / "in", tmp_path / "out", weight_method="magnitude", sparsity=0.5, expert_sparsity=0
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_zeros_are_counted_over_an_interruption(tmp_path):
    write(tmp_path / "in", *arctic(), files=4)
    settings = {"weight_method": "magnitude", "sparsity": 0.6, "expert_sparsity": 0.25}

    def stop(phase, done, total):
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", progress=stop, **settings)
    finished = list((output.partial_of(tmp_path / "out") / "files").glob("*.safetensors"))
    assert finished
    resumed = stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", **settings)
    fresh = stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "fresh", **settings)
    assert [row.zeros for row in resumed.layers] == [row.zeros for row in fresh.layers]
    left, right = tree(tmp_path / "out"), tree(tmp_path / "fresh")
    left.pop("README.md"), right.pop("README.md")
    assert left == right


def _with_mtp(tmp_path):
    """DeepSeek-V3 in bfloat16 with a layer of multi-token prediction after the last."""
    model = make_model("deepseek_v3", n_group=1, topk_group=1)
    model.save_pretrained(tmp_path / "plain")
    tensors = read(tmp_path / "plain")
    last = make_config("deepseek_v3").num_hidden_layers
    draw = Source(9)
    for name in [name for name in tensors if f"layers.{last - 1}." in name]:
        new = name.replace(f"layers.{last - 1}.", f"layers.{last}.")
        tensors[new] = draw(*tensors[name].shape, dtype=tensors[name].dtype)
    tensors[f"model.layers.{last}.eh_proj.weight"] = draw(32, 64)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    config["quantization_config"] = {"ignored_layers": ["lm_head", f"model.layers.{last}.eh_proj"]}
    write(tmp_path / "in", tensors, config)
    return model, tensors, last


@pytest.mark.parametrize("mtp", ["prune", "drop"])
def test_multi_token_prediction(mtp, tmp_path):
    model, tensors, last = _with_mtp(tmp_path)
    found = stun_ext.collect_statistics(model, calibration=_tokens(model))
    report = stun_ext.prune_checkpoint(
        tmp_path / "in", tmp_path / "out", statistics=found, mtp=mtp, sparsity=0.6, expert_sparsity=0.25
    )
    config, left = json.loads((tmp_path / "out" / "config.json").read_text()), read(tmp_path / "out")
    of_mtp = {name for name in left if f"layers.{last}." in name}
    if mtp == "drop":
        assert not of_mtp and config["num_nextn_predict_layers"] == 0
        assert config["quantization_config"]["ignored_layers"] == ["lm_head"]
        return
    assert config["num_nextn_predict_layers"] == 1
    name = f"model.layers.{last}.mlp"
    assert left[f"{name}.gate.weight"].shape[0] == 6 == config["n_routed_experts"]
    assert any(f"{name}: calibration does not reach it" in note for note in report.warnings)
    new = left[f"{name}.experts.2.down_proj.weight"]
    old = tensors[f"{name}.experts.{report.kept[last][2]}.down_proj.weight"]
    assert torch.equal(new, _smallest_to_zero(old, (0.6 - 0.25) / 0.75))


def test_multi_token_prediction_is_kept_where_no_expert_goes(tmp_path):
    _, tensors, last = _with_mtp(tmp_path)
    settings = {"mtp": "keep", "weight_method": "magnitude", "sparsity": 0.5}
    with pytest.raises(ValueError, match=r"mtp='keep' would leave layers .* with 8 experts"):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", expert_sparsity=0.25, **settings)
    stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", expert_sparsity=0, **settings)
    left = read(tmp_path / "out")
    of_mtp = [name for name in tensors if f"layers.{last}." in name]
    assert of_mtp and all(torch.equal(left[name], tensors[name]) for name in of_mtp)
    changed = [name for name in tensors if ".experts." in name and not torch.equal(left[name], tensors[name])]
    assert len(changed) == 3 * 8 * len(analyze(make_model("deepseek_v3")).layers)
    with pytest.raises(ValueError, match="mtp must be one of prune, keep, drop"):
        stun_ext.prune_checkpoint(tmp_path / "in", tmp_path / "out", mtp="off")
