# SPDX-License-Identifier: Apache-2.0
"""``stun-ext prune MODEL OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stun_ext.cli import options
from stun_ext.cli.loading import ModelSource, check_device_and_dtype, load_model, load_tokenizer
from stun_ext.cli.options import setting
from stun_ext.cli.session import Session, session

if TYPE_CHECKING:
    from stun_ext.recipe import Recipe
    from stun_ext.report import PruneReport


def prune(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write the pruned checkpoint to.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Settings from a file, YAML or JSON; flags override them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and report, write nothing.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="A .jsonl or .txt file, or the name of a data set on the hub (allenai/c4 is what the paper "
            "uses). Default: text sampled from the model itself.",
        ),
    ] = None,
    no_calibration: Annotated[
        bool,
        typer.Option("--no-calibration", help="Use no data at all: router rows and weight magnitudes alone."),
    ] = False,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Prune from file to file without loading the model: experts go by their router rows, weights stay as "
            "they are unless --weight-method magnitude is given. MODEL is a directory, or in the hub's cache. "
            "A run that was interrupted goes on where it was.",
        ),
    ] = False,
    sparsity: Annotated[float | None, setting("sparsity")] = None,
    expert_sparsity: Annotated[float | None, setting("expert_sparsity")] = None,
    criterion: Annotated[str | None, setting("criterion")] = None,
    similarity: Annotated[str | None, setting("similarity")] = None,
    normalize_router: Annotated[bool | None, setting("normalize_router")] = None,
    linkage: Annotated[str | None, setting("linkage")] = None,
    representative: Annotated[str | None, setting("representative")] = None,
    representative_score: Annotated[str | None, setting("representative_score")] = None,
    mean_limit: Annotated[int | None, setting("mean_limit")] = None,
    per_layer: Annotated[str | None, setting("per_layer")] = None,
    expert_multiple: Annotated[int | None, setting("expert_multiple")] = None,
    min_experts: Annotated[int | None, setting("min_experts")] = None,
    weight_method: Annotated[str | None, setting("weight_method")] = None,
    weight_allocation: Annotated[str | None, setting("weight_allocation")] = None,
    owl_threshold: Annotated[float | None, setting("owl_threshold")] = None,
    owl_lambda: Annotated[float | None, setting("owl_lambda")] = None,
    pattern: Annotated[str | None, setting("pattern")] = None,
    scope: Annotated[str | None, setting("scope")] = None,
    num_calibration_samples: Annotated[int | None, setting("num_calibration_samples")] = None,
    max_seq_length: Annotated[int | None, setting("max_seq_length")] = None,
    batch_size: Annotated[int | None, setting("batch_size")] = None,
    seed: Annotated[int | None, setting("seed")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune MODEL and write the result to OUT.

    OUT gets the checkpoint, the tokenizer's files, stun_report.json and a model card. It appears at once
    when it is complete: a kill at any moment leaves no half checkpoint.
    """
    given = dict(locals())  # first of all: the settings' flags, by name
    with session(json_output=json_output, quiet=quiet) as current:
        source = ModelSource(model, revision, local_files_only, trust_remote_code)
        source.check("prune")
        if no_calibration and calibration is not None:
            raise ValueError(f"[prune] --no-calibration contradicts --calibration {calibration}")
        base, settings = options.read_settings(recipe, given)
        if streaming:
            for flag, value, default in (
                ("calibration", calibration, None),
                ("device", device, "auto"),
                ("dtype", dtype, "auto"),
            ):
                if value != default:
                    raise ValueError(f"[prune] --streaming loads no model: it contradicts --{flag} {value}")
            report = _stream(current, source, out, base, settings, force=force, dry_run=dry_run)
            _show(current, report, out)
            return
        asked = {
            "recipe": base,
            "calibration": False if no_calibration else calibration,
            "dry_run": dry_run,
            **settings,
        }
        report = _run(current, source, out, asked, device=device, dtype=dtype, force=force)
        _show(current, report, out)


def _show(current: Session, report: PruneReport, out: Path) -> None:
    written = None if report.dry_run else str(out)
    text = report.table() + ("\nnothing written (dry run)" if report.dry_run else f"\nwritten to {out}")
    current.result({"out": written, **report.to_dict()}, text)


def _stream(
    current: Session,
    source: ModelSource,
    out: Path,
    recipe: Recipe | None,
    settings: dict[str, Any],
    *,
    force: bool,
    dry_run: bool,
) -> PruneReport:
    from stun_ext.streaming import prune_checkpoint

    folder = source.folder()
    if folder is None:
        raise ValueError(
            f"[prune] --streaming needs the files of {source.name} at hand: first, hf download {source.name}"
        )
    return prune_checkpoint(
        folder,
        out,
        recipe=recipe,
        base_model=source.name,
        force=force,
        dry_run=dry_run,
        trust_remote_code=source.trust_remote_code,
        progress=current.byte_progress,
        **settings,
    )


def _run(
    current: Session,
    source: ModelSource,
    out: Path,
    asked: dict[str, Any],
    *,
    device: str,
    dtype: str,
    force: bool,
) -> PruneReport:
    from stun_ext import pipeline
    from stun_ext.checkpoint import out_is_free, save_pretrained
    from stun_ext.model_card import model_card

    check_device_and_dtype("prune", device, dtype)
    out_is_free(out, force, source.folder())
    current.note(f"loading {source.name}")
    tokenizer = load_tokenizer(source)
    model = load_model(source, device=device, dtype=dtype, quiet=current.quiet)
    report = pipeline.prune(model, tokenizer=tokenizer, progress=current.progress, **asked)
    current.end_progress()
    if not report.dry_run:
        current.note(f"writing {out}")
        files = {
            "stun_report.json": report.to_json(),
            "README.md": model_card(report, base_model=source.name, name=out.resolve().name),
        }
        # The source's own tokenizer files are better than a tokenizer written anew by this Transformers.
        save_pretrained(model, out, files=files, force=force, source=source.folder())
    return report
