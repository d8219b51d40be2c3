# SPDX-License-Identifier: Apache-2.0
"""`prune_checkpoint`: stage 1 from router rows, and the files that follow from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stun_ext import expert_pruning
from stun_ext.checkpoint import carry_over, out_is_free, without_mtp
from stun_ext.expert_pruning import ExpertDecisions
from stun_ext.model_card import model_card
from stun_ext.recipe import Recipe
from stun_ext.report import LayerReport, PruneReport, versions
from stun_ext.request import resolve
from stun_ext.streaming import output
from stun_ext.streaming.config import patched_config
from stun_ext.streaming.families import find_layout
from stun_ext.streaming.layout import Layout
from stun_ext.streaming.parts import num_weights
from stun_ext.streaming.plan import CheckpointPlan, plan_checkpoint
from stun_ext.streaming.shards import INDEX, StoredCheckpoint, open_checkpoint

Progress = Callable[[str, int, int], None]
REPORT, CARD = "stun_report.json", "README.md"


def prune_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    base_model: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> PruneReport:
    """Removes experts from a checkpoint on disk, without loading it and at the speed of copying.

    Experts are chosen by their router rows (``criterion="similarity"``) or at random; what stays is copied byte for
    byte, and quantised experts go or stay with their scales. Memory is needed for the names of tensors and the routers
    alone. Families that Transformers does not know are read by the names of their tensors; layers of multi-token
    prediction are pruned by their own routers.

    ``.OUT.partial`` beside `out` holds the files until all are complete. After a kill or a full disk the same call goes
    on from there, and ends with the same bytes.

    Args:
        source: Directory of a checkpoint with safetensors files; it is only read.
        out: Directory to write, which appears when it is complete: the checkpoint, the files of `source` that belong to
            it, ``stun_report.json`` and a model card.
        recipe: The settings; ``settings`` override single fields of it. As in :func:`stun_ext.prune` with
            ``calibration=False``, but for ``weight_method``, which must be "none", its default here: weights are not
            zeroed yet, and ``sparsity`` alone is the share of experts to remove. Quantised experts cannot be
            averaged, so there ``representative`` defaults to "router". ``per_layer="global"`` is for families of
            Transformers; the result then loads with :func:`stun_ext.from_pretrained`.
        base_model: The model's name for the card. Default: the directory's.
        force: Replace `out` if it is a checkpoint.
        dry_run: Decide and report, with bytes; write nothing.
        trust_remote_code: Run Python code that the checkpoint brings along.
        progress: Called with (phase, done, total); "write" counts bytes.
        **settings: Any field of :class:`Recipe`.

    Returns:
        What was decided; no weights are read for it, so kurtosis and zeros are not counted.

    Raises:
        ValueError: An illegal setting, a damaged checkpoint, one this cannot prune, or a request it cannot meet.
        FileExistsError, NotADirectoryError, PermissionError: As `checkpoint.out_is_free`.
        OSError: Reading or writing failed.
    """
    target = Path(os.path.abspath(out))
    asked = settings if recipe is not None else {"weight_method": "none", **settings}
    resolved = resolve(recipe, asked, False, None)
    _check_recipe(resolved)
    checkpoint = open_checkpoint(source)
    _check_target(target, checkpoint, force)
    found = find_layout(checkpoint, trust_remote_code=trust_remote_code)
    layout = found.layout
    if recipe is None and "representative" not in settings and _is_quantised(layout):
        resolved = resolved.replace(representative="router")
    decisions = _decide(layout, resolved)
    found.check_counts(decisions.counts)
    kept = [decision.kept for decision in decisions.layers]
    by_name = {block.name: ids for block, ids in zip(layout.blocks, kept, strict=True)}
    config = patched_config(checkpoint.config, layout, by_name)
    without_mtp(config, checkpoint.file_of)
    plan = plan_checkpoint(checkpoint, layout.blocks, kept, config)
    report = _report(checkpoint, layout, decisions, plan, resolved)
    if dry_run:
        report.dry_run = True
        return report
    _write(checkpoint, plan, target, _texts(report, plan, base_model or str(source), target), force, progress)
    return report


def _check_recipe(recipe: Recipe) -> None:
    for name, legal in (
        ("weight_method", ("none",)),
        ("representative", ("nearest", "router")),
        ("scope", (("experts",),)),
    ):
        value = getattr(recipe, name)
        if value not in legal:
            choices = " or ".join(",".join(c) if isinstance(c, tuple) else c for c in legal)
            raise ValueError(
                f"[prune_checkpoint] {name} must be {choices} where the model is not loaded, got {value!r}"
            )


def _check_target(target: Path, checkpoint: StoredCheckpoint, force: bool) -> None:
    """Refuses a target that may not be written, except one that an interrupted run completed: `_write` sees to it."""
    interrupted = output.partial_of(target)
    if not (target.is_dir() and (interrupted / "plan").is_file() and not (interrupted / "files").exists()):
        out_is_free(target, force, checkpoint.folder)


def _is_quantised(layout: Layout) -> bool:
    return any(not matrix.is_float for block in layout.blocks for matrix in block.matrices)


def _decide(layout: Layout, recipe: Recipe) -> ExpertDecisions:
    for block in layout.blocks:
        if not bool(torch.isfinite(block.router_weight).all()):
            raise ValueError(f"[prune_checkpoint] {block.router} holds NaN or Inf")
    if recipe.representative == "nearest" and recipe.criterion == "similarity" and _is_quantised(layout):
        raise ValueError(
            "[prune_checkpoint] representative must be 'router' for quantised experts, without a mean, got 'nearest'"
        )
    if recipe.per_layer == "global" and not layout.may_differ:
        raise ValueError(
            f"[prune_checkpoint] per_layer must be 'uniform' for this {layout.family} model: its config cannot say "
            "that layers differ, got 'global'"
        )
    decisions = expert_pruning.decide(layout.blocks, [None] * len(layout.blocks), recipe)
    if min(decisions.counts) == layout.num_experts:
        raise ValueError(
            f"[prune_checkpoint] sparsity={recipe.sparsity:g}, expert_sparsity={recipe.expert_sparsity} would keep all "
            f"{layout.num_experts} experts, and nothing else is done here"
        )
    return decisions


def _report(
    checkpoint: StoredCheckpoint,
    layout: Layout,
    decisions: ExpertDecisions,
    plan: CheckpointPlan,
    recipe: Recipe,
) -> PruneReport:
    rows = []
    notes = list(layout.notes)
    if sum(decisions.counts) != decisions.requested_total:
        notes.append(
            f"{sum(decisions.counts)} experts are kept, the nearest that is reachable to {decisions.requested_total}"
        )
    for block, decision in zip(layout.blocks, decisions.layers, strict=True):
        weights = block.num_expert_parameters()
        row = LayerReport(block.name, block.index, block.num_experts * weights)
        row.parameters_after = len(decision.kept) * weights
        row.num_experts_before = block.num_experts
        row.kept, row.clusters = decision.kept, decision.labels
        rows.append(row)
    return PruneReport(
        recipe=recipe,
        family=layout.family,
        calibration="none: router rows alone",
        calibration_tokens=0,
        layers=rows,
        requested_experts=decisions.requested_total,
        threshold=decisions.threshold,
        model_parameters_before=sum(num_weights(name, tensor) for name, tensor in checkpoint.items()),
        model_parameters_after=plan.parameters,
        bytes_before=sum(tensor.bytes for _, tensor in checkpoint.items()),
        bytes_after=plan.bytes,
        warnings=notes,
        versions=versions(),
    )


def _texts(report: PruneReport, plan: CheckpointPlan, base_model: str, target: Path) -> dict[str, str]:
    texts = {
        "config.json": json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n",
        REPORT: report.to_json(),
        CARD: model_card(report, base_model=base_model, name=target.name),
    }
    if plan.index is not None:
        texts[INDEX] = json.dumps(plan.index, indent=2, ensure_ascii=False) + "\n"
    return texts


def _write(
    checkpoint: StoredCheckpoint,
    plan: CheckpointPlan,
    target: Path,
    texts: dict[str, str],
    force: bool,
    progress: Progress | None,
) -> None:
    with output.locked(target) as partial:
        if output.is_done(target, plan):
            output.tidy(partial)
            return
        done, total = 0, plan.bytes

        def tick(copied: int) -> None:
            nonlocal done
            done += copied
            if progress is not None:
                progress("write", done, total)

        try:
            out_is_free(target, force, checkpoint.folder)
            files = output.begin(partial, plan)
            output.check_space(plan, files)
            output.write_shards(plan, files, tick)
            for name, text in texts.items():
                (files / name).write_text(text, encoding="utf-8")
            carry_over(checkpoint.folder, files, with_tokenizer=True)
            output.put_out(partial, target, force)
        except BaseException as error:
            if partial.exists() and not output.clear_if_empty(partial, plan) and hasattr(error, "add_note"):
                error.add_note(
                    f"what is finished is kept in {partial}: the same call goes on from there; remove it to start anew"
                )
            raise
