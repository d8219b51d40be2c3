# SPDX-License-Identifier: Apache-2.0
"""The command line ``stun-ext``: one file a subcommand; heavy imports sit inside, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import stun_ext
from stun_ext.cli.bench import bench
from stun_ext.cli.cluster import cluster
from stun_ext.cli.demo import demo
from stun_ext.cli.eval import evaluate
from stun_ext.cli.inspect import inspect
from stun_ext.cli.pack import pack, unpack
from stun_ext.cli.prune import prune

app = typer.Typer(
    name="stun-ext",
    help="Prune Mixture-of-Experts language models: whole experts first, then weights in those that stay.",
    epilog="Exit codes: 0 done; 1 failure while working; 2 bad usage or a request that cannot be "
    "met, nothing was changed; 130 interrupted. Results go to stdout, progress and messages to stderr.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # session() prints errors, and a traceback where one helps
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prune")(prune)
app.command("inspect")(inspect)
app.command("eval")(evaluate)
app.command("cluster")(cluster)
app.command("pack")(pack)
app.command("unpack")(unpack)
app.command("bench")(bench)
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stun-ext {stun_ext.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script and of ``python -m stun_ext.cli``."""
    app(prog_name="stun-ext")
