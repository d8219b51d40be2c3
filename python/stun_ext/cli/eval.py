# SPDX-License-Identifier: Apache-2.0
"""``stun-ext eval MODEL``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from stun_ext import demo
from stun_ext.cli import options
from stun_ext.cli.loading import ModelSource, check_device_and_dtype, load_model, load_tokenizer
from stun_ext.cli.session import session

if TYPE_CHECKING:
    from stun_ext.evaluation import EvalResult


def evaluate(
    model: options.Model,
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            metavar="FILE",
            help='A .jsonl file of {"text", "domain"}; each domain counts the same in the perplexity. '
            "Default: the demo's seven domains.",
        ),
    ] = None,
    wordmath: Annotated[
        Path | None,
        typer.Option(
            "--wordmath",
            metavar="FILE",
            help='A .jsonl file of {"prompt", "answer"}: the greedy continuation must end in "#### answer". '
            "Default: the demo's, and none with --validation.",
        ),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", help="Windows per domain at most.")] = 12,
    seq_length: Annotated[int, typer.Option("--seq-length", help="Tokens per window.")] = 512,
    max_problems: Annotated[int, typer.Option("--max-problems", help="Word problems at most.")] = 200,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Windows per forward pass.")] = 6,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",  # perplexities compare only at one precision
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure MODEL: perplexity by domain, and accuracy on word problems."""
    with session(json_output=json_output, quiet=quiet) as current:
        source = ModelSource(model, revision, local_files_only, trust_remote_code)
        source.check("eval")
        if validation is None:
            validation, wordmath = demo.VALIDATION, wordmath or demo.WORDMATH
        for path in (validation, wordmath):
            if path is not None and not path.is_file():
                raise ValueError(f"[eval] no such file: {path}")

        from stun_ext import evaluation

        check_device_and_dtype("eval", device, dtype)
        current.note(f"loading {model}")
        result = evaluation.evaluate(
            load_model(source, device=device, dtype=dtype, quiet=quiet),
            load_tokenizer(source),
            validation,
            wordmath,
            windows=windows,
            max_problems=max_problems,
            seq_length=seq_length,
            batch_size=batch_size,
            progress=lambda done, total: current.progress("evaluate", done, total),
        )
        current.result(_document(model, validation, wordmath, result), _table(model, result))


def _document(model: str, validation: Path, wordmath: Path | None, result: EvalResult) -> dict[str, object]:
    files = {"validation": str(validation), "wordmath": None if wordmath is None else str(wordmath)}
    return {"model": model, **files, **finite(result.to_dict())}


def finite(value: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity: the perplexity of a model that pruning has broken becomes null."""
    cleaned: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            item = finite(item)
        elif isinstance(item, float) and not abs(item) < float("inf"):
            item = None
        cleaned[name] = item
    return cleaned


def _table(model: str, result: EvalResult) -> Table:
    table = Table(title=model, title_justify="left")
    table.add_column("domain")
    table.add_column("perplexity", justify="right")
    for name, perplexity in result.domains.items():
        table.add_row(name, f"{perplexity:.2f}")
    table.add_section()
    table.add_row("all", f"{result.perplexity:.2f}")
    if result.accuracy is not None:
        table.add_row(f"word problems solved, of {result.num_problems}", f"{result.accuracy:.1%}")
    return table
