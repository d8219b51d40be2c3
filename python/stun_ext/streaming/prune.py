# SPDX-License-Identifier: Apache-2.0
"""`prune_checkpoint`: both stages from router rows, weights and saved statistics, and the files that follow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stun_ext import expert_pruning
from stun_ext.checkpoint import carry_over, mtp_tensors, out_is_free, without_mtp
from stun_ext.expert_pruning import ExpertDecisions
from stun_ext.model_card import model_card
from stun_ext.recipe import Recipe
from stun_ext.report import LayerReport, PruneReport, never_routed_note, versions
from stun_ext.request import resolve
from stun_ext.statistics import Statistics
from stun_ext.streaming import output, weights
from stun_ext.streaming.config import patched_config, without_layers
from stun_ext.streaming.families import find_layout
from stun_ext.streaming.layout import Layout
from stun_ext.streaming.parts import num_weights
from stun_ext.streaming.plan import CheckpointPlan, plan_checkpoint
from stun_ext.streaming.shards import INDEX, StoredCheckpoint, open_checkpoint

Progress = Callable[[str, int, int], None]
REPORT, CARD = "stun_report.json", "README.md"
MTP = ("prune", "keep", "drop")


def prune_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    statistics: Statistics | None = None,
    mtp: str = "prune",
    base_model: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> PruneReport:
    """Prunes a checkpoint on disk without loading it: whole experts, then weights in those that stay.

    Without statistics, experts are chosen by their router rows (``criterion="similarity"``) or at random. What stays is
    copied byte for byte, at the speed of copying; quantised experts go or stay with their scales. Weights are zeroed
    (by magnitude, or by Wanda from statistics) a few megabytes at a time on the way to the new file, and the result has
    the bytes of the same request in memory. Families that Transformers does not know are read by the names of their
    tensors.

    ``.OUT.partial`` beside `out` holds the files until all are complete. After a kill or a full disk the same call goes
    on from there, and ends with the same bytes.

    Args:
        source: Directory of a checkpoint with safetensors files; it is only read.
        out: Directory to write, which appears when it is complete: the checkpoint, the files of `source` that belong to
            it, ``stun_report.json`` and a model card.
        recipe: The settings; ``settings`` override single fields of it. As in :func:`stun_ext.prune`, but that
            without `statistics` ``weight_method`` defaults to "none", and ``sparsity`` alone is the share of experts to
            remove. ``scope`` is the experts, and ``representative="mean"`` is not for files. Quantised experts cannot
            be averaged, so there ``representative`` defaults to "router", nor can single weights of theirs be zeroed.
            ``per_layer="global"`` is for families of Transformers; the result then loads with
            :func:`stun_ext.from_pretrained`.
        statistics: Of an earlier :func:`stun_ext.collect_statistics` on the same model, for Wanda and saliencies.
        mtp: Layers of multi-token prediction, which the model's class does not have: "prune" chooses as many experts as
            elsewhere by their own routers and zeroes their weights by magnitude; "drop" leaves the layers out, and
            ``config.json`` says so; "keep" copies them as they are, where no experts are removed (``config.json`` has
            one number of experts for all layers).
        base_model: The model's name for the card. Default: the directory's.
        force: Replace `out` if it is a checkpoint.
        dry_run: Decide and report, with bytes; write nothing.
        trust_remote_code: Run Python code that the checkpoint brings along.
        progress: Called with (phase, done, total); "write" counts bytes.
        **settings: Any field of :class:`Recipe`.

    Returns:
        What was decided, with the zeros counted while they were written; kurtosis is not.

    Raises:
        ValueError: An illegal setting, a damaged checkpoint, one this cannot prune, or a request it cannot meet.
        FileExistsError, NotADirectoryError, PermissionError: As `checkpoint.out_is_free`.
        OSError: Reading or writing failed.
    """
    target = Path(os.path.abspath(out))
    if mtp not in MTP:
        raise ValueError(f"[prune_checkpoint] mtp must be one of {', '.join(MTP)}, got {mtp!r}")
    asked = (
        settings if recipe is not None or statistics is not None else {"weight_method": "none", **settings}
    )
    resolved = resolve(recipe, asked, False, statistics)
    _check_recipe(resolved)
    whole = open_checkpoint(source)
    _check_target(target, whole, force)
    checkpoint = whole.without(mtp_tensors(whole.config, whole.file_of)) if mtp == "drop" else whole
    found = find_layout(checkpoint, trust_remote_code=trust_remote_code)
    layout = found.layout
    if recipe is None and "representative" not in settings and _is_quantised(layout):
        resolved = resolved.replace(representative="router")
    matrices = None
    if resolved.weight_method != "none":
        matrices = weights.block_matrices(checkpoint, layout, found.experts)
    _check_statistics(layout, statistics)
    if matrices is not None:
        weights.check_request(layout, matrices, statistics, resolved)
    decisions = _decide(layout, statistics, resolved)
    is_mtp = _mtp_blocks(layout, checkpoint)
    if mtp == "keep" and any(is_mtp) and min(decisions.counts) < layout.num_experts:
        raise ValueError(
            "[prune_checkpoint] mtp='keep' would leave layers of multi-token prediction with "
            f"{layout.num_experts} experts where config.json says {max(decisions.counts)}: use 'prune' or 'drop', or "
            "expert_sparsity=0"
        )
    found.check_counts(decisions.counts)
    kept = [decision.kept for decision in decisions.layers]
    edits = None
    if matrices is not None:
        skip = is_mtp if mtp == "keep" else [False] * len(is_mtp)
        edits = weights.plan_weights(checkpoint, layout, matrices, kept, statistics, resolved, skip)
    by_name = {block.name: ids for block, ids in zip(layout.blocks, kept, strict=True)}
    config = patched_config(checkpoint.config, layout, by_name)
    if mtp == "drop":
        config = without_layers(config, whole.config)
    without_mtp(config, checkpoint.file_of)
    plan = plan_checkpoint(
        checkpoint, layout.blocks, kept, config,
        None if edits is None else edits.edits, "" if edits is None else edits.digest,
    )  # fmt: skip
    report = _report(whole, layout, decisions, plan, resolved, statistics, edits)
    if dry_run:
        report.dry_run = True
        return report
    _write(checkpoint, plan, target, _Texts(report, plan, base_model or str(source), target), force, progress)
    return report


def _check_recipe(recipe: Recipe) -> None:
    for name, legal in (
        ("representative", ("nearest", "router", "score")),
        ("scope", (("experts",),)),
    ):
        value = getattr(recipe, name)
        if value not in legal:
            choices = " or ".join(",".join(c) if isinstance(c, tuple) else c for c in legal)
            raise ValueError(
                f"[prune_checkpoint] {name} must be {choices} where the model is not loaded, got {value!r}"
            )


def _check_statistics(layout: Layout, statistics: Statistics | None) -> None:
    if statistics is None:
        return
    expected = [block.num_experts for block in layout.blocks[: len(layout.blocks) - layout.num_extra]]
    found = [layer.num_experts for layer in statistics.layers]
    if found != expected:
        raise ValueError(
            f"[prune_checkpoint] statistics are of {found} experts per layer, the checkpoint has {expected}"
        )


def _mtp_blocks(layout: Layout, checkpoint: StoredCheckpoint) -> list[bool]:
    names = set(mtp_tensors(checkpoint.config, checkpoint.file_of))
    return [block.router in names for block in layout.blocks]


def _check_target(target: Path, checkpoint: StoredCheckpoint, force: bool) -> None:
    """Refuses a target that may not be written, except one that an interrupted run completed: `_write` sees to it."""
    interrupted = output.partial_of(target)
    if not (target.is_dir() and (interrupted / "plan").is_file() and not (interrupted / "files").exists()):
        out_is_free(target, force, checkpoint.folder)


def _is_quantised(layout: Layout) -> bool:
    return any(not matrix.is_float for block in layout.blocks for matrix in block.matrices)


def _decide(layout: Layout, statistics: Statistics | None, recipe: Recipe) -> ExpertDecisions:
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
    decisions = _decide_blocks(layout, statistics, recipe)
    if min(decisions.counts) == layout.num_experts and recipe.weight_method == "none":
        raise ValueError(
            f"[prune_checkpoint] sparsity={recipe.sparsity:g}, expert_sparsity={recipe.expert_sparsity} would keep all "
            f"{layout.num_experts} experts, and nothing else is done here"
        )
    return decisions


def _decide_blocks(layout: Layout, statistics: Statistics | None, recipe: Recipe) -> ExpertDecisions:
    if statistics is None:
        return expert_pruning.decide(layout.blocks, [None] * len(layout.blocks), recipe)
    main = layout.blocks[: len(layout.blocks) - layout.num_extra]
    decisions = expert_pruning.decide(main, statistics.layers, recipe)
    if layout.num_extra:  # no token of calibration reaches them: as many experts, by their routers alone
        own = recipe.replace(criterion="similarity", similarity=(1.0, 0.0), representative="router")
        extra = expert_pruning.decide(layout.blocks[len(main) :], [None] * layout.num_extra, own)
        decisions.layers += extra.layers
        decisions.requested_total += extra.requested_total
    return decisions


def _report(
    checkpoint: StoredCheckpoint,
    layout: Layout,
    decisions: ExpertDecisions,
    plan: CheckpointPlan,
    recipe: Recipe,
    statistics: Statistics | None,
    edits: weights.WeightPlan | None,
) -> PruneReport:
    rows = []
    notes = [*layout.notes, *(edits.notes if edits is not None else ())]
    if sum(decisions.counts) != decisions.requested_total:
        notes.append(
            f"{sum(decisions.counts)} experts are kept, the nearest that is reachable to {decisions.requested_total}"
        )
    for number, (block, decision) in enumerate(zip(layout.blocks, decisions.layers, strict=True)):
        size = block.num_expert_parameters()
        row = LayerReport(block.name, block.index, block.num_experts * size)
        row.parameters_after = len(decision.kept) * size
        if edits is not None:
            row.asked_weight_sparsity = edits.sparsities[number]
            row.zeros = round(
                row.asked_weight_sparsity * row.parameters_after
            )  # counted when they are written
        if statistics is not None and number < len(statistics.layers):
            row.never_routed = list(statistics.layers[number].starved)
            if row.never_routed:
                notes.append(never_routed_note(row))
        row.num_experts_before = block.num_experts
        row.kept, row.clusters = decision.kept, decision.labels
        rows.append(row)
    return PruneReport(
        recipe=recipe,
        family=layout.family,
        calibration=_calibration(statistics, recipe),
        calibration_tokens=0 if statistics is None else statistics.num_tokens,
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


def _calibration(statistics: Statistics | None, recipe: Recipe) -> str:
    if statistics is not None:
        return statistics.source
    if recipe.weight_method == "none":
        return "none: router rows alone"
    return "none: router rows and weight magnitudes alone"


@dataclass
class _Texts:
    """The text files of the new checkpoint; the report's depends on the zeros that were written."""

    report: PruneReport
    plan: CheckpointPlan
    base_model: str
    target: Path

    def count(self, zeros: dict[int, int]) -> None:
        for block, count in zeros.items():
            self.report.layers[block].zeros = count

    def items(self) -> list[tuple[str, str]]:
        texts = {
            "config.json": json.dumps(self.plan.config, indent=2, ensure_ascii=False) + "\n",
            REPORT: self.report.to_json(),
            CARD: model_card(self.report, base_model=self.base_model, name=self.target.name),
        }
        if self.plan.index is not None:
            texts[INDEX] = json.dumps(self.plan.index, indent=2, ensure_ascii=False) + "\n"
        return list(texts.items())

    def count_written(self) -> None:
        """Takes the zeros from the report of an earlier run that wrote the same plan."""
        written = json.loads((self.target / REPORT).read_text(encoding="utf-8"))
        self.count({number: int(layer["zeros"]) for number, layer in enumerate(written["layers"])})


def _write(
    checkpoint: StoredCheckpoint,
    plan: CheckpointPlan,
    target: Path,
    texts: _Texts,
    force: bool,
    progress: Progress | None,
) -> None:
    with output.locked(target) as partial:
        if output.is_done(target, plan):
            texts.count_written()
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
            texts.count(output.write_shards(plan, files, tick))
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
