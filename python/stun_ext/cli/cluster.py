# SPDX-License-Identifier: Apache-2.0
"""``stun-ext cluster SOURCE``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from stun_ext.cli import options
from stun_ext.cli.loading import ModelSource, hush_transformers
from stun_ext.cli.session import Session, session

if TYPE_CHECKING:
    from stun_ext.clustering import RouterClusters
    from stun_ext.routers import Router

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def cluster(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A matrix of rows: FILE.npy, or FILE.safetensors:TENSOR. Or a model, whose routers are found: "
            "directory of a checkpoint, or the id of one on the hub.",
        ),
    ],
    k: Annotated[int | None, typer.Option("--k", help="Number of clusters.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Merge up to this Euclidean distance.")
    ] = None,
    linkage: Annotated[
        str,
        typer.Option(
            "--linkage",
            metavar="single|complete|average|ward|centroid|star",
            help="When clusters are close; star is the rule of the released STUN code.",
        ),
    ] = "complete",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            "--memory-limit",
            metavar="SIZE",
            help="Working memory, such as 500MB or 1GiB; the result stays the same. Default: 2.5GiB; 2GiB for star.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="0,3,8-11", help="Layers of a model. Default: all with experts."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write labels and merges to a .npz file, or labels to a .json file."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw dendrograms (up to 300 rows; a summary beyond) into a .png, .pdf or .svg file.",
        ),
    ] = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Cluster the rows of a router, or of every router of a model, exactly and in little memory.

    Files are mapped, so a matrix may be larger than memory, and of a model nothing but its routers is read.
    Without --k and --threshold the whole tree is built.
    """
    with session(json_output=json_output, quiet=quiet) as current:
        limit = None if memory_limit is None else _bytes(memory_limit)
        chosen = None if layers is None else _numbers(layers)
        _check(k, threshold, linkage, out, plot)
        if quiet:
            hush_transformers()
        model = ModelSource(source, revision, local_files_only, trust_remote_code)
        routers = _routers(current, model, chosen)
        settings = {
            "n_clusters": k,
            "threshold": threshold,
            "linkage": linkage,
            "memory_limit": limit,
            "full_tree": plot is not None and linkage != "star",
        }
        found, seconds = _cluster(current, routers, settings)
        if out is not None:
            current.note(f"writing {out}")
            _write(out, source, found, seconds)
        if plot is not None:
            current.note(f"drawing {plot}")
            _draw(plot, source, found)
        current.result(_document(source, found, seconds), _table(source, found, seconds))


def _routers(current: Session, model: ModelSource, layers: Sequence[int] | None) -> list[Router]:
    from stun_ext import routers

    if routers.is_file(model.name):
        if layers is not None:
            raise ValueError("[cluster] --layers is for models, got a file of rows")
        return [routers.open_router(model.name)]
    model.check("cluster")
    current.note(f"finding the routers of {model.name}")
    return routers.model_routers(
        model.name,
        layers=layers,
        revision=model.revision,
        local_files_only=model.local_files_only,
        trust_remote_code=model.trust_remote_code,
    )


def _cluster(
    current: Session, routers: Sequence[Router], settings: dict[str, Any]
) -> tuple[list[RouterClusters], list[float]]:
    from stun_ext.clustering import cluster_router

    found, seconds = [], []
    rows, width = routers[0].rows.shape
    many = f"{len(routers)} routers, the first of " if len(routers) > 1 else ""
    current.note(f"clustering {many}{rows:,} rows of {width:,}")
    for index, router in enumerate(routers):

        def show(fraction: float, index: int = index) -> None:
            current.progress("cluster, %", int(100 * (index + fraction) / len(routers)), 100)

        start = time.perf_counter()
        try:
            found.append(cluster_router(router, progress=show, **settings))
        except ValueError as error:
            raise ValueError(f"{error} ({router.name})") from error
        seconds.append(time.perf_counter() - start)
        show(1.0)
    current.end_progress()
    return found, seconds


def _check(k: int | None, threshold: float | None, linkage: str, out: Path | None, plot: Path | None) -> None:
    """Before the work, which may be long."""
    from stun_ext import clustering, plots

    clustering.check_request(linkage, k, threshold)
    if out is not None:
        clustering.check_format(out)
    if plot is not None:
        plots.check_format(plot)
    for path in (out, plot):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"[cluster] no such directory: {path.parent}")


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]I?)?B?", size.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"[cluster] --memory-limit is a size such as 500MB or 1GiB, got {size!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"[cluster] --layers is a list such as 0,3,8-11, got {text!r}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


# Results ----------------------------------------------------------------------------------------------------


def _document(source: str, found: Sequence[RouterClusters], seconds: Sequence[float]) -> dict[str, Any]:
    routers = [
        {**clusters.to_dict(), "seconds": spent} for clusters, spent in zip(found, seconds, strict=True)
    ]
    return {"source": source, "routers": routers}


def _write(out: Path, source: str, found: Sequence[RouterClusters], seconds: Sequence[float]) -> None:
    import json

    from stun_ext.clustering import check_format, save_arrays
    from stun_ext.files import replaced

    if check_format(out) == ".json":
        with replaced(out) as temporary:
            document = json.dumps(_document(source, found, seconds), indent=2, allow_nan=False)
            temporary.write_text(document + "\n", encoding="utf-8")
    else:
        alone = len(found) == 1 and found[0].layer is None
        save_arrays(out, {"" if alone else f"{clusters.name}/": clusters for clusters in found})


def _draw(plot: Path, source: str, found: Sequence[RouterClusters]) -> None:
    from stun_ext.plots import draw_clusters, save_figure

    title = source if found[0].layer is not None else None
    save_figure(draw_clusters(found, title=title), plot)


def _table(source: str, found: Sequence[RouterClusters], seconds: Sequence[float]) -> Table:
    table = Table(title=f"{source}, {found[0].linkage} linkage", title_justify="left")
    of_model = found[0].layer is not None
    names = ["layer"] * of_model + [
        "rows",
        "length",
        "clusters",
        "largest",
        "alone",
        "threshold",
        "merge heights: min, median, max",
        "seconds",
    ]
    for name in names:
        table.add_column(name, justify="right")
    for clusters, spent in zip(found, seconds, strict=True):
        values = clusters.to_dict()
        heights, reached = values["heights"], values["threshold"]
        sizes = values["sizes"]
        cells = [
            f"{clusters.n:,}",
            f"{clusters.d:,}",
            f"{len(sizes):,}",
            ", ".join(f"{size:,}" for size in sizes[:3]),
            f"{sizes.count(1):,}",
            "-" if reached is None else f"{reached:.4g}",
            "-" if heights is None else ", ".join(f"{heights[key]:.4g}" for key in ("min", "median", "max")),
            f"{spent:.2f}",
        ]
        table.add_row(*([str(clusters.layer)] if of_model else []), *cells)
    return table
