# SPDX-License-Identifier: Apache-2.0
"""``stun-ext bench MODEL``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stun_ext.cli import options
from stun_ext.cli.loading import ModelSource, check_device_and_dtype, load_model
from stun_ext.cli.session import session

if TYPE_CHECKING:
    from stun_ext.benchmark import BenchResult


def bench(
    model: options.Model,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Sequences decoded at once.")] = 1,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Random tokens to start with.")] = 8,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to decode.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs, of which the median counts.")] = 3,
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a pruned MODEL on this machine's CPU: dense experts against packed ones.

    Prints bytes and tokens per second while decoding. Dense is the fastest of the implementations that
    Transformers has for the model.
    """
    with session(json_output=json_output, quiet=quiet) as current:
        source = ModelSource(model, revision, local_files_only, trust_remote_code)
        source.check("bench")
        check_device_and_dtype("bench", "cpu", dtype)
        from stun_ext.benchmark import bench as measure

        current.note(f"loading {source.name}")
        loaded = load_model(source, device="cpu", dtype=dtype, quiet=quiet)
        result = measure(
            loaded,
            batch_size=batch_size,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            progress=current.progress,
        )
        current.result({"model": model, **result.to_dict()}, _table(result))


def _table(result: BenchResult) -> str:
    rates = result.dense_tokens_per_second
    best = rates[result.dense_implementation]
    others = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    return "\n".join(
        [
            f"{'':<22}{'dense':>12}{'packed':>12}{'ratio':>9}",
            f"{'experts, MB':<22}{result.dense_bytes / 1e6:>12,.1f}{result.packed_bytes / 1e6:>12,.1f}"
            f"{result.packed_bytes / result.dense_bytes:>8.2f}x",
            f"{'decoding, tokens/s':<22}{best:>12,.2f}{result.packed_tokens_per_second:>12,.2f}"
            f"{result.speedup:>8.2f}x",
            f"{result.batch_size} x {result.new_tokens} tokens; {result.same_tokens:.0%} the same; "
            f"threads: {result.threads[0]} (torch), {result.threads[1]} (packed)",
            f"Transformers' implementations: {others} tokens/s",
        ]
    )
