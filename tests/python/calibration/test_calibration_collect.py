# SPDX-License-Identifier: Apache-2.0
"""`collect` against brute force, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from calibration_reference import brute_force, record_calls, run_expert, tiny_batches, tiny_model
from torch import nn

import stun_ext.calibration as calibration
from stun_ext.calibration import STARVED_SAMPLE, _LayerCollector, _TokenSample, collect
from stun_ext.models import analyze, decoder_linears
from stun_ext.statistics import LayerStatistics, Statistics

FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "nemotron_h"]
SUMS = ["token_count", "norm_sum", "norm_sq_sum", "weighted_norm_sum", "coactivation", "gram"]


def expected_layers(
    family: str, model: Any, batches: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    moe = analyze(model)
    calls = record_calls(model, [layer.experts_name for layer in moe.layers], batches)
    return [
        brute_force(
            family,
            layer.experts,
            layer.num_experts,
            calls[layer.experts_name],
            getattr(layer.experts, "post_expert_norm", nn.Identity()),
        )
        for layer in moe.layers
    ]


def assert_layer(got: LayerStatistics, want: dict[str, torch.Tensor], rtol: float) -> None:
    routed = want["token_count"] > 0
    for name in SUMS:
        torch.testing.assert_close(getattr(got, name), want[name], rtol=rtol, atol=0.0)
    for name, tensor in got.input_sq_norm.items():
        kind = "inner" if name == "down_proj" else "hidden"
        gated = got.gated_input_sq_norm[name]
        assert tensor.dtype == gated.dtype == torch.float32
        tolerance = {"rtol": max(rtol, 1e-6), "atol": 1e-30, "check_dtype": False}
        torch.testing.assert_close(tensor[routed], want[kind][routed], **tolerance)
        torch.testing.assert_close(gated[routed], want[f"gated_{kind}"][routed], **tolerance)


def assert_equal(a: Statistics, b: Statistics, rtol: float = 0.0) -> None:
    assert (a.num_samples, a.num_tokens) == (b.num_samples, b.num_tokens)
    for first, second in zip(a.layers, b.layers, strict=True):
        first_fields, second_fields = dataclasses.asdict(first), dataclasses.asdict(second)
        for name in ("num_tokens", "starved"):
            assert first_fields.pop(name) == second_fields.pop(name)
        torch.testing.assert_close(first_fields, second_fields, rtol=rtol, atol=0.0)
    torch.testing.assert_close(a.linears, b.linears, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_statistic_equals_brute_force(family: str) -> None:
    model, batches = tiny_model(family), tiny_batches()
    want = expected_layers(family, model, batches)
    got = collect(analyze(model), batches)
    real = 14 + 12 + 8
    assert (got.num_samples, got.num_tokens) == (7, real)
    assert len(got.layers) == len(want) == 2
    for layer, reference in zip(got.layers, want, strict=True):
        assert layer.num_tokens == real
        assert layer.starved == torch.nonzero(reference["token_count"] == 0).flatten().tolist()
        assert_layer(layer, reference, rtol=1e-10)
        layer.check("test")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_statistics_in_lower_precision(family: str, dtype: torch.dtype, rtol: float) -> None:
    # One layer deep, so that a near-tie in a later router cannot send a token elsewhere.
    model = tiny_model(family, dtype)
    batches = tiny_batches()
    want = expected_layers(family, model, batches)[0]
    assert_layer(collect(analyze(model), batches).layers[0], want, rtol)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_is_the_stock_output(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype)
    for layer in analyze(model).layers:
        experts: Any = layer.experts
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(50, 16, generator=generator).to(dtype)
        index = torch.stack(
            [torch.randperm(layer.num_experts, generator=generator)[: layer.top_k] for _ in range(50)]
        )
        gate = torch.rand(50, layer.top_k, generator=generator)
        for weights in (gate, gate.to(dtype)):
            with torch.no_grad():
                want = experts(hidden, index, weights)
                collector = _LayerCollector(layer)
                collector.start_batch(None, 50)
                got = collector.forward(hidden, index, weights)
            assert got.dtype == want.dtype
            tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance * float(want.abs().max()))


def test_whole_model_runs_the_same_while_observed() -> None:
    model, batches = tiny_model("qwen3_moe", torch.float32), tiny_batches()
    outputs: list[torch.Tensor] = []
    hook = model.model.register_forward_hook(lambda module, args, out: outputs.append(out.last_hidden_state))
    collect(analyze(model), batches)
    hook.remove()
    with torch.no_grad():
        for batch, got in zip(batches, outputs, strict=True):
            want = model.eval().model(**batch).last_hidden_state
            torch.testing.assert_close(got, want, rtol=0.0, atol=1e-5 * float(want.abs().max()))


def test_norm_after_the_expert_is_part_of_its_output() -> None:
    model, batches = tiny_model("mixtral"), tiny_batches()
    for layer in analyze(model).layers:
        experts: Any = layer.experts
        if not hasattr(experts, "has_post_expert_norm"):
            pytest.skip("this version of Transformers has no such experts")
        experts.has_post_expert_norm = True
        experts.post_expert_norm = nn.LayerNorm(16, dtype=torch.float64)
        nn.init.normal_(experts.post_expert_norm.weight)
    want = expected_layers("mixtral", model, batches)
    for layer, reference in zip(collect(analyze(model), batches).layers, want, strict=True):
        assert_layer(layer, reference, rtol=1e-10)


def test_ids_of_other_ranks_are_skipped() -> None:
    layer = analyze(tiny_model("mixtral")).layers[0]
    experts: Any = layer.experts
    hidden = torch.randn(9, 16, dtype=torch.float64)
    index = torch.stack([torch.randperm(6)[:2] for _ in range(9)])
    index[2, 0], index[5, 1], index[7, :] = 6, 6, 6
    gate = torch.rand(9, 2, dtype=torch.float64).masked_fill(index == 6, 0.0)
    experts._is_expert_parallel = True
    with torch.no_grad():
        want = experts(hidden, index, gate)
    collector = _LayerCollector(layer)
    collector.start_batch(None, 9)
    torch.testing.assert_close(collector.forward(hidden, index, gate), want)
    got = collector.result()
    counts = torch.bincount(index.flatten(), minlength=7)[:6]
    assert torch.equal(got.token_count, counts)
    norm = run_expert("mixtral", experts, int(index[2, 1]), hidden[2])[1].norm()
    assert got.norm_sum[index[2, 1]] >= norm


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_batch_split_does_not_matter(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(64, (8, 9), generator=torch.Generator().manual_seed(5))
    linears = decoder_linears(model, ["attention"])
    whole = collect(analyze(model), [{"input_ids": ids}], linears=linears)
    single = collect(analyze(model), [{"input_ids": row[None]} for row in ids], linears=linears)
    # The same rows, in one batch with padding behind every one of them.
    padded = {"input_ids": torch.nn.functional.pad(ids, (0, 3)), "attention_mask": torch.ones(8, 12).long()}
    padded["attention_mask"][:, 9:] = 0
    assert_equal(whole, single, rtol=1e-6)
    assert_equal(whole, collect(analyze(model), [padded], linears=linears), rtol=1e-6)


@pytest.mark.parametrize("elements", [1, 16 * 20, 16 * 60, 1 << 30])
def test_chunks_do_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_model("gpt_oss"), tiny_batches()
    want = collect(analyze(model), batches)
    monkeypatch.setattr(calibration, "_CPU_CHUNK_ELEMENTS", elements)
    assert_equal(collect(analyze(model), batches), want, rtol=1e-6)


def test_same_batches_give_the_same_bits() -> None:
    model, batches = tiny_model("gpt_oss", torch.float32), tiny_batches()
    linears = decoder_linears(model, ["attention"])
    first, second = (collect(analyze(model), batches, linears=linears) for _ in range(2))
    assert_equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_brute_force(family: str) -> None:
    model, batches = tiny_model(family).cuda(), tiny_batches()
    linears = decoder_linears(model, ["attention"])
    want = expected_layers(family, model, batches)  # routed on the same device: routers may round in float32
    got, again = (collect(analyze(model), batches, linears=linears) for _ in range(2))
    assert_equal(got, again)
    for layer, reference in zip(got.layers, want, strict=True):
        assert layer.gram.device.type == "cpu"
        assert_layer(layer, reference, rtol=1e-5)


# --- starved experts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_starved_experts_get_norms_from_a_sample(family: str) -> None:
    model, batches = tiny_model(family), tiny_batches()
    layer = analyze(model).layers[1]
    with torch.no_grad():
        if family == "gpt_oss":
            layer.block.router.bias[3] = -1e4
        else:
            layer.block.gate.e_score_correction_bias[3] = -1e4
    calls = record_calls(model, [layer.experts_name], batches)[layer.experts_name]
    tokens = torch.cat([call.hidden[call.real] for call in calls])  # fewer than the sample: all are kept
    assert len(tokens) < STARVED_SAMPLE
    got = collect(analyze(model), batches).layers[1]
    assert 3 in got.starved
    assert all(int(got.token_count[expert]) == 0 for expert in got.starved)
    for name in SUMS:
        assert not getattr(got, name)[3].any()
    hidden = sum(x**2 for x in tokens)
    inner = sum(run_expert(family, layer.experts, 3, x)[0] ** 2 for x in tokens)
    for name, tensor in got.input_sq_norm.items():
        want = inner if name == "down_proj" else hidden
        torch.testing.assert_close(tensor[3], want.float(), rtol=1e-6, atol=0.0)
        assert torch.equal(got.gated_input_sq_norm[name][3], tensor[3])


@pytest.mark.parametrize("splits", [[5000], [1] * 300 + [4700], [700, 1300, 3000], [4999, 1]])
def test_sample_is_spread_and_independent_of_batches(splits: list[int]) -> None:
    stream = torch.arange(5000.0)[:, None]
    sample, start = _TokenSample(), 0
    for size in splits:
        real = None
        rows = stream[start : start + size]
        if size == 1300:  # padding in between must not shift anything
            rows = torch.cat([rows[:100], torch.full((50, 1), -1.0), rows[100:]])
            real = rows[:, 0] >= 0
        sample.add(rows, real)
        start += size
    whole = _TokenSample()
    whole.add(stream, None)
    assert sample.rows is not None and whole.rows is not None
    kept = sample.rows.flatten().sort().values
    assert torch.equal(kept, whole.rows.flatten().sort().values)
    assert len(kept.unique()) == STARVED_SAMPLE
    steps = kept.diff(prepend=torch.tensor([-1.0]), append=torch.tensor([5000.0]))
    assert float(steps.max()) <= 3 * 5000 / STARVED_SAMPLE


# --- plain linears ------------------------------------------------------------------------------------------


def test_linears_equal_brute_force() -> None:
    model, batches = tiny_model("deepseek_v3"), tiny_batches()
    linears = decoder_linears(model, ["attention", "mlp", "shared_experts"])
    assert any("shared_experts" in name for name in linears)
    assert any("kv_b_proj" in name for name in linears)
    want = {name: torch.zeros(linear.in_features).double() for name, linear in linears.items()}
    real = torch.empty(0)

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            for row, counts in zip(args[0].reshape(-1, args[0].shape[-1]), real.tolist(), strict=True):
                want[name] += row**2 * counts

        return add

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    with torch.no_grad():
        for batch in batches:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten()
            model.eval()(**batch)
    for handle in handles:
        handle.remove()
    got = collect(analyze(model), batches, linears=linears).linears
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name].float(), rtol=1e-6, atol=0.0)


def test_dense_model_gives_linears_only() -> None:
    model, batches = tiny_model("llama"), tiny_batches()
    linears = decoder_linears(model, ["attention", "mlp"])
    got = collect(analyze(model), batches, linears=linears)
    assert got.layers == []
    assert got.linears.keys() == linears.keys()
    assert got.num_tokens == 34


# --- refusals -----------------------------------------------------------------------------------------------


def refuse_to_run(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a forward pass was run")


def test_unsupported_family_is_refused_before_running() -> None:
    model = tiny_model("llama4_text", torch.float32)
    model.model.forward = refuse_to_run
    with pytest.raises(ValueError, match=r"\[collect\].*'llama4_text'.*Llama4TextExperts.*calibration=False"):
        collect(analyze(model), tiny_batches())


def test_layer_never_reached_is_named_after_the_first_batch() -> None:
    model = tiny_model("mixtral", torch.float32)
    model.model.layers[1].mlp.forward = lambda hidden_states: hidden_states
    seen: list[int] = []

    def batches() -> Any:
        for index, batch in enumerate(tiny_batches()):
            seen.append(index)
            yield batch

    with pytest.raises(ValueError, match=r"\[collect\].*'mixtral'.*model\.layers\.1\.mlp,"):
        collect(analyze(model), batches())
    assert seen == [0]


def test_linear_never_reached_is_named() -> None:
    model = tiny_model("mixtral", torch.float32)
    with pytest.raises(ValueError, match=r"\[collect\].*without calling the forward of spare"):
        collect(analyze(model), tiny_batches(), linears={"spare": nn.Linear(4, 4)})


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"\[collect\] batches must hold at least one batch, got none"),
        (
            [{"ids": torch.ones(1, 2)}],
            r"\[collect\] batch 0 must be a mapping with 'input_ids', got \['ids'\]",
        ),
        ([torch.ones(1, 2)], r"\[collect\] batch 0 must be a mapping with 'input_ids', got Tensor"),
        (
            [{"input_ids": torch.ones(0, 2).long()}],
            r"batch 0 must hold \[sequences, tokens\], got shape \[0, 2\]",
        ),
        ([{"input_ids": torch.ones(3).long()}], r"batch 0 must hold \[sequences, tokens\], got shape \[3\]"),
        (
            [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 2)}],
            r"\[collect\] batch 0 holds padding only",
        ),
        (
            [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 1, 2, 2)}],
            r"batch 0: attention_mask must have shape \[1, 2\], got \[1, 1, 2, 2\]",
        ),
    ],
)
def test_malformed_batches(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(analyze(tiny_model("mixtral", torch.float32)), batches)


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match=r"\[collect\] nothing to measure"):
        collect(analyze(tiny_model("llama", torch.float32)), tiny_batches())


def test_values_that_are_not_finite_name_the_layer() -> None:
    model = tiny_model("mixtral", torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[:, 0, 0] = torch.inf
    with pytest.raises(
        ValueError, match=r"\[collect\] model\.layers\.1\.mlp got or gave values that are not finite"
    ):
        collect(analyze(model), tiny_batches())


# --- what is left behind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_model_is_left_as_it_was(error: type[BaseException] | None) -> None:
    model = tiny_model("mixtral", torch.float32)
    model.train()
    model.model.layers[0].eval()  # a mixture of flags must come back as a mixture
    first, second = (layer.experts for layer in analyze(model).layers)
    inner = type(first).forward.__get__(first)
    first.forward = inner  # an instance may have a forward of its own, such as accelerate's
    linears = decoder_linears(model, ["attention"])
    flags = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def progress(done: int, total: int) -> None:
        assert "forward" in second.__dict__ and not torch.is_grad_enabled() and not model.training
        if error is not None:
            raise error

    if error is None:
        collect(analyze(model), tiny_batches(), linears=linears, progress=progress)
    else:
        with pytest.raises(error):
            collect(analyze(model), tiny_batches(), linears=linears, progress=progress)
    assert first.__dict__["forward"] is inner
    assert "forward" not in second.__dict__
    assert not any(linear._forward_pre_hooks for linear in linears.values())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_progress_head_and_labels() -> None:
    model, batches = tiny_model("mixtral", torch.float32), tiny_batches()
    model.lm_head.forward = refuse_to_run
    ticks: list[tuple[int, int]] = []
    for batch in batches:
        batch["labels"] = batch["input_ids"]
    collect(analyze(model), batches, progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    ticks.clear()
    collect(analyze(model), iter(batches), progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 0), (2, 0), (3, 0)]
