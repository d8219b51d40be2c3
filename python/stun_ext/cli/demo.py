# SPDX-License-Identifier: Apache-2.0
"""``stun-ext demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from stun_ext.cli import options
from stun_ext.cli.eval import finite
from stun_ext.cli.loading import hush_transformers
from stun_ext.cli.session import session

if TYPE_CHECKING:
    from stun_ext.demo.comparison import Comparison, StockLoad


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="65% alone, measured on less text.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Keep the pruned checkpoint in DIR, a new directory."),
    ] = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune the bundled, really trained model at 40%, 50% and 65%, and measure what is left.

    Compares Wanda alone with the default recipe by perplexity and word problems, then loads a pruned
    checkpoint with stock Transformers. No download.
    """
    with session(json_output=json_output, quiet=quiet) as current:
        hush_transformers()
        from stun_ext.demo.comparison import compare

        found = compare(quick=quick, keep=keep, progress=current.progress)
        if found.stock is not None and found.stock.imported_stun_ext:
            raise RuntimeError("the process of stock Transformers imported stun_ext: nothing is proved")
        current.result(finite(found.to_dict()), _text(found, kept=keep is not None))


def _text(found: Comparison, *, kept: bool) -> Group:
    table = Table(title="OLMoE, 5.5 million parameters, 4 layers of 32 experts", title_justify="left")
    for name in ("sparsity", "recipe", "experts kept", "zeros in them", "perplexity", "word problems"):
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=name == "recipe")
    for row in found.rows:
        if row.recipe in ("dense", "Wanda alone"):
            table.add_section()
        table.add_row(
            f"{row.sparsity:.1%}",
            row.recipe,
            f"{row.experts_kept / row.experts_before:.1%}",
            f"{row.weight_sparsity:.1%}",
            f"{row.perplexity:.2f}",
            f"{row.accuracy:.1%}",
        )
    slowest = max(row.prune_seconds for row in found.rows)
    lines = [
        f"calibrated once on {found.calibration}; pruning took {slowest:.1f} s or less; {found.seconds:.0f} s in all"
    ]
    if found.stock is not None:
        lines.append(_stock_line(found.stock, kept=kept))
    return Group(table, *lines)


def _stock_line(stock: StockLoad, *, kept: bool) -> str:
    where = stock.checkpoint if kept else "the last checkpoint"
    return (
        f"a process that never imported stun_ext loaded {where} with AutoModelForCausalLM: "
        f"{stock.model_class}, {stock.experts_per_layer} experts per layer, "
        f"logits differ by at most {stock.largest_logit_difference:g}"
    )
