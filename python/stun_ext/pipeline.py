# SPDX-License-Identifier: Apache-2.0
"""Both stages on a model in memory: settle the request, calibrate, decide everything, then change the model."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from stun_ext import weight_pruning
from stun_ext.calibration import collect
from stun_ext.calibration_data import load_calibration
from stun_ext.expert_pruning import ExpertDecisions
from stun_ext.models import MoEModel, analyze, check_prunable
from stun_ext.planning import (
    Plan,
    decide_experts,
    layer_statistics,
    make_plan,
    parameters_left,
    pruned_matrices,
)
from stun_ext.recipe import Recipe
from stun_ext.report import LayerReport, PruneReport, never_routed_note, versions
from stun_ext.request import (
    ScopedLayer,
    check_finite,
    check_request,
    fit_to_model,
    layers_in_scope,
    resolve,
)
from stun_ext.statistics import Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]


def prune(
    model: PreTrainedModel,
    *,
    tokenizer: Any = None,
    calibration: Any = None,
    recipe: Recipe | None = None,
    statistics: Statistics | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> PruneReport:
    """Prunes a Transformers model in place: whole experts first, then weights inside those that stay (STUN).

    Everything is decided before anything is changed: an exception or Ctrl-C before that leaves the model as it was.

    Args:
        model: a causal language model of Transformers with routed experts, in memory (CPU or GPU). On a dense model
            stage 2 works alone, on its attention and MLP matrices.
        tokenizer: needed where ``calibration`` is text.
        calibration: what the statistics are collected on: token batches, texts, a ``datasets`` data set, a DataLoader,
            the path of a .jsonl or .txt file, or the name of a hub data set ("allenai/c4" is what the paper uses).
            None samples text from the model itself. False uses no data: experts are clustered by their router rows and
            weights go by magnitude.
        recipe: the settings; ``settings`` override single fields of it.
        statistics: of an earlier :func:`collect_statistics` on the same dense model, instead of ``calibration``.
        dry_run: decide and report, change nothing.
        progress: called with (phase, done, total).
        **settings: any field of :class:`Recipe`, such as ``sparsity=0.65`` or ``criterion="reap"``.

    Returns:
        What was asked and what was reached, counted on the result.

    Raises:
        ValueError: an illegal setting, a model this cannot prune, or a request it cannot meet; the message says what
            is legal. Nothing has been changed.
    """
    recipe = resolve(recipe, settings, calibration, statistics)
    check_prunable(model)
    moe = analyze(model)
    recipe = fit_to_model(recipe, moe)
    layers = layers_in_scope(model, moe, recipe)
    check_request(moe, layers, recipe)

    clock = _Clock(progress)
    with clock.phase("calibrate"):
        statistics, source = _statistics(
            model, moe, layers, tokenizer, calibration, recipe, statistics, clock
        )
    with clock.phase("decide"):
        check_finite(layers, clock.tick)
        stage1 = decide_experts(moe, statistics, recipe)
        plan = make_plan(moe, layers, stage1, statistics, recipe)
        report = _draft(model, moe, plan, stage1, statistics, source, recipe, clock)
    if dry_run:
        report.dry_run = True
    else:
        with clock.phase("prune"), _partial_change_note():
            _apply(plan, statistics, recipe, report, clock)
        report.model_parameters_after = _num_parameters(model)
    report.seconds = clock.seconds
    return report


def collect_statistics(
    model: PreTrainedModel,
    *,
    tokenizer: Any = None,
    calibration: Any = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Statistics:
    """One calibration pass, for several calls of :func:`prune` on copies of the same dense model.

    Args:
        model: as in :func:`prune`.
        tokenizer: as in :func:`prune`.
        calibration: as in :func:`prune`, but not False.
        recipe: as in :func:`prune`; only the scope, the calibration's size and the seed matter.
        progress: as in :func:`prune`.
        **settings: as in :func:`prune`.

    Raises:
        ValueError: as in :func:`prune`; also ``calibration=False``.
    """
    if calibration is False:
        raise ValueError(
            "[collect_statistics] calibration=False collects nothing; pass data, or None for self-sampling"
        )
    recipe = (recipe or Recipe()).replace(**settings)
    check_prunable(model)
    moe = analyze(model)
    recipe = fit_to_model(recipe, moe)
    clock = _Clock(progress)
    return _collect(model, moe, layers_in_scope(model, moe, recipe), tokenizer, calibration, recipe, clock)


def _show_settings_in_signature(function: Callable[..., Any]) -> None:
    """Lets help() and editors list the recipe's fields where the code takes **settings."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(
            setting.name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=setting.type
        )
        for setting in dataclasses.fields(Recipe)
    ]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]


_show_settings_in_signature(prune)
_show_settings_in_signature(collect_statistics)


class _Clock:
    """Seconds per phase, and the caller's progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._phase, start = name, time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def tick(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._phase, done, total)

    def tick_sampling(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("sample text", done, total)


# --- statistics ------------------------------------------------------------------------------------------------------


def _statistics(
    model: PreTrainedModel,
    moe: MoEModel,
    layers: Sequence[ScopedLayer],
    tokenizer: Any,
    calibration: Any,
    recipe: Recipe,
    given: Statistics | None,
    clock: _Clock,
) -> tuple[Statistics | None, str]:
    if given is not None:
        _check_statistics(given, moe, layers, recipe)
        return given, given.source
    if calibration is False:
        return None, "none: router rows and weight magnitudes alone"
    if not recipe.needs_statistics:
        return None, "none needed by these settings"
    found = _collect(model, moe, layers, tokenizer, calibration, recipe, clock)
    return found, found.source


def _collect(
    model: PreTrainedModel,
    moe: MoEModel,
    layers: Sequence[ScopedLayer],
    tokenizer: Any,
    calibration: Any,
    recipe: Recipe,
    clock: _Clock,
) -> Statistics:
    data = load_calibration(
        calibration,
        model,
        tokenizer,
        num_samples=recipe.num_calibration_samples,
        max_seq_length=recipe.max_seq_length,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        progress=clock.tick_sampling,
    )
    linears = {name: linear for layer in layers for name, linear in layer.linears.items()}
    statistics = collect(moe, data.batches, linears=linears, progress=clock.tick)
    return dataclasses.replace(
        statistics, source=data.source, num_samples=data.num_samples, num_tokens=data.num_tokens
    )


def _check_statistics(
    statistics: Statistics, moe: MoEModel, layers: Sequence[ScopedLayer], recipe: Recipe
) -> None:
    experts = [len(layer.token_count) for layer in statistics.layers]
    expected = [layer.num_experts for layer in moe.layers]
    if experts != expected:
        raise ValueError(f"[prune] statistics are of {experts} experts per layer, the model has {expected}")
    for layer in layers:
        for name in layer.linears:
            if recipe.needs_statistics and name not in statistics.linears:
                raise ValueError(f"[prune] statistics lack {name}: collect them with scope={recipe.scope}")


# --- the change ------------------------------------------------------------------------------------------------------


@contextmanager
def _partial_change_note() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(
                "stun_ext.prune was interrupted while changing the model: it is partly pruned, load it again"
            )
        raise


def _apply(
    plan: Plan, statistics: Statistics | None, recipe: Recipe, report: PruneReport, clock: _Clock
) -> None:
    if plan.slices is not None:
        plan.slices.apply([layer.kept for layer in plan.experts], [layer.members for layer in plan.experts])
    for done, (layer, sparsity, row) in enumerate(
        zip(plan.layers, plan.sparsities, report.layers, strict=True)
    ):
        clock.tick(done, len(plan.layers))
        weights = list(pruned_matrices(layer, plan, statistics, recipe))
        row.kurtosis_after_experts = _kurtosis(weight for weight, _ in weights)
        row.zeros = 0
        for weight, norms in weights:
            if recipe.weight_method == "none":
                row.zeros += weight.numel() - int(torch.count_nonzero(weight))
            else:
                row.zeros += weight_pruning.prune_matrix(weight, norms, sparsity=sparsity, pattern=recipe.nm)
        if (
            layer.moe is None or layer.moe.matrices
        ):  # else: a layout without single matrices, removed as decided
            row.parameters_after = sum(weight.numel() for weight, _ in weights)
        row.kurtosis_after_weights = _kurtosis((weight for weight, _ in weights), nonzero_only=True)
    clock.tick(len(plan.layers), len(plan.layers))


def _kurtosis(weights: Iterator[torch.Tensor] | Any, *, nonzero_only: bool = False) -> float:
    moments = weight_pruning.Moments()
    for weight in weights:
        moments.add(weight, nonzero_only=nonzero_only)
    return moments.kurtosis


# --- the report ------------------------------------------------------------------------------------------------------


def _draft(
    model: PreTrainedModel,
    moe: MoEModel,
    plan: Plan,
    stage1: ExpertDecisions,
    statistics: Statistics | None,
    source: str,
    recipe: Recipe,
    clock: _Clock,
) -> PruneReport:
    """The report as decided; counts of the result replace the expected ones when the model is changed."""
    rows = []
    for layer, sparsity in zip(plan.layers, plan.sparsities, strict=True):
        row = LayerReport(layer.name, layer.index, layer.parameters, asked_weight_sparsity=sparsity)
        row.parameters_after = parameters_left(layer, plan.experts)
        nm = recipe.nm
        row.asked_weight_sparsity = sparsity if nm is None else 1.0 - nm[0] / nm[1]
        row.zeros = round(row.asked_weight_sparsity * row.parameters_after)
        row.kurtosis_before = _kurtosis(iter(_weights_before(layer)))
        if layer.moe is not None:
            decision = plan.experts[layer.moe_position]
            row.num_experts_before = layer.moe.num_experts
            row.kept, row.clusters, row.averaged = decision.kept, decision.labels, decision.members
            if statistics is not None:
                row.never_routed = list(layer_statistics(layer, statistics).starved)
        rows.append(row)
    before = _num_parameters(model)
    removed = plan.slices.num_removed_parameters() if plan.slices is not None else 0
    report = PruneReport(
        recipe=recipe,
        family=moe.family,
        calibration=source,
        calibration_tokens=0 if statistics is None else statistics.num_tokens,
        layers=rows,
        requested_experts=stage1.requested_total,
        threshold=stage1.threshold,
        model_parameters_before=before,
        model_parameters_after=before - removed,
        versions=versions(),
        seconds=clock.seconds,
    )
    report.warnings = _warnings(report, stage1)
    return report


def _weights_before(layer: ScopedLayer) -> Iterator[torch.Tensor]:
    if layer.moe is not None:
        for matrix in layer.moe.matrices:
            for expert in range(layer.moe.num_experts):
                yield matrix.expert(expert)
    for linear in layer.linears.values():
        yield linear.weight


def _warnings(report: PruneReport, stage1: ExpertDecisions) -> list[str]:
    found = []
    for row in report.layers:
        if row.never_routed:
            found.append(never_routed_note(row))
    if sum(stage1.counts) != stage1.requested_total:
        found.append(
            f"{sum(stage1.counts)} experts are kept, the nearest that is reachable to {stage1.requested_total}"
        )
    return found


def _num_parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
