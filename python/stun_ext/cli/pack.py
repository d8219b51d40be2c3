# SPDX-License-Identifier: Apache-2.0
"""``stun-ext pack CHECKPOINT OUT`` and ``stun-ext unpack PACKED OUT``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from stun_ext.cli import options
from stun_ext.cli.session import session

_Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]


def pack(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="Directory of a pruned checkpoint, safetensors format."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    force: _Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pack the experts of a pruned checkpoint: a bitmap and the weights that are not zero.

    OUT runs on the CPU from the packed weights: stun_ext.from_pretrained loads it. `stun-ext unpack` gives
    the checkpoint back, bit for bit. One matrix at a time is in memory.
    """
    with session(json_output=json_output, quiet=quiet) as current:
        from stun_ext.packing import pack_checkpoint

        if quiet:
            from stun_ext.cli.loading import hush_transformers

            hush_transformers()
        report = pack_checkpoint(
            checkpoint, out, force=force, trust_remote_code=trust_remote_code, progress=current.progress
        )
        ratio = report.packed_bytes / report.dense_bytes
        text = (
            f"experts         {_size(report.dense_bytes)} -> {_size(report.packed_bytes)} "
            f"({ratio:.1%} of it; {report.sparsity:.1%} of the weights are zero)\n"
            f"matrices        {report.num_packed:,} of {report.num_matrices:,} packed\n"
            f"other weights   {_size(report.other_bytes)}, unchanged\n"
            f"written to {out}"
        )
        if report.num_packed == 0:
            text += "\nNothing was worth packing: fewer than 15% of the weights are zero. Is this checkpoint pruned?"
        current.result({"out": str(out), **dataclasses.asdict(report)}, text)


def unpack(
    packed: Annotated[Path, typer.Argument(metavar="PACKED", help="Directory that `stun-ext pack` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    force: _Force = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the dense checkpoint that was packed, bit for bit."""
    with session(json_output=json_output, quiet=quiet) as current:
        from stun_ext.unpacking import unpack_checkpoint

        size = unpack_checkpoint(packed, out, force=force, progress=current.progress)
        current.result({"out": str(out), "bytes": size}, f"{_size(size)} of weights written to {out}")


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count / 1e3:.2f} kB"
