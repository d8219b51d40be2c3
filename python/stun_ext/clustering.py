# SPDX-License-Identifier: Apache-2.0
"""Clusters of one router's rows: every linkage, exactly, up to routers whose distances no memory would hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stun_ext import ops
from stun_ext.files import replaced
from stun_ext.routers import Router, open_router

if TYPE_CHECKING:
    import torch

LINKAGES = ("single", "complete", "average", "ward", "centroid", "star")
STAR_MEMORY = 2 << 30  # bytes; what the star rule takes at most when nothing is said

Progress: TypeAlias = Callable[[float], "bool | None"]
_FORMATS = (".npz", ".json")


@dataclass(frozen=True, eq=False)
class RouterClusters:
    """The clusters of a router's rows; see `cluster_router`.

    Attributes:
        labels: int64 [n], the lowest row in each row's cluster.
        linkage: The rule: a linkage method, or "star".
        threshold: The distance that was asked for; with a number of clusters the height of the last merge (for "star"
            the threshold at which its rule leaves that many). None where nothing merged.
        Z: float64 [m, 4], the merges in SciPy's layout: all n - 1 of a full tree, else those that were made. None for
            "star", which has no tree.
        d: Length of a row.
        name: Where the rows came from; None for an array.
        layer: Index of the decoder layer, for a model's router.
    """

    labels: npt.NDArray[np.int64]
    linkage: str
    threshold: float | None
    Z: npt.NDArray[np.float64] | None = field(repr=False)
    d: int
    name: str | None = None
    layer: int | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(np.unique(self.labels))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Rows per cluster, int64 [n_clusters], largest first."""
        counts = np.unique(self.labels, return_counts=True)[1]
        return np.sort(counts.astype(np.int64))[::-1]

    @property
    def is_full(self) -> bool:
        """Whether Z goes on to one cluster."""
        return self.Z is not None and len(self.Z) == self.n - 1

    def members(self) -> dict[int, list[int]]:
        """Lowest row of each cluster, ascending -> its rows, ascending."""
        clusters: dict[int, list[int]] = {}
        for row, label in enumerate(self.labels.tolist()):
            clusters.setdefault(label, []).append(row)
        return clusters

    def cut(self, n_clusters: int | None = None, threshold: float | None = None) -> RouterClusters:
        """The same tree cut elsewhere; give exactly one.

        Args:
            n_clusters: In [1, n].
            threshold: Merges up to this height are applied (see `stun_ext.ops.cut_tree`).

        Raises:
            ValueError: An argument is out of its range, the tree ended early, or there is none ("star").
        """
        if self.Z is None or not self.is_full:
            raise ValueError(
                '[RouterClusters.cut] needs a full tree: cluster with full_tree=True ("star" has no tree)'
            )
        labels = ops.cut_tree(self.Z, n_clusters, threshold, n_observations=self.n)
        reached = _last_height(self.Z, self.n, n_clusters) if threshold is None else threshold
        return replace(self, labels=labels, threshold=reached)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the tree where its leaves can be read, else a summary, to a .png, .pdf or .svg file.

        See `stun_ext.plots.draw_clusters`, which draws several routers on one page and returns the figure.
        """
        from stun_ext.plots import draw_clusters, save_figure

        save_figure(draw_clusters([self]), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON. The merges are summed up: ``save`` to a .npz file keeps them."""
        heights = None
        if self.Z is not None and len(self.Z):
            low, middle, high = np.quantile(self.Z[:, 2], [0, 0.5, 1]).tolist()
            heights = {"merges": len(self.Z), "min": low, "median": middle, "max": high}
        return {
            "name": self.name,
            "layer": self.layer,
            "linkage": self.linkage,
            "n": self.n,
            "d": self.d,
            "n_clusters": self.n_clusters,
            "threshold": self.threshold if self.threshold is None or math.isfinite(self.threshold) else None,
            "sizes": self.sizes.tolist(),
            "heights": heights,
            "labels": self.labels.tolist(),
        }

    def to_json(self) -> str:
        """The same as one JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz file (arrays ``labels`` and, with a tree, ``Z``) or a .json file; whole or not at all.

        Raises:
            ValueError: Another suffix.
        """
        if check_format(path) == ".json":
            with replaced(path) as temporary:
                temporary.write_text(self.to_json(), encoding="utf-8")
        else:
            save_arrays(path, {"": self})


def cluster_router(
    router: npt.NDArray[Any] | torch.Tensor | Router | str | os.PathLike[str],
    *,
    n_clusters: int | None = None,
    threshold: float | None = None,
    linkage: str = "complete",
    full_tree: bool = False,
    memory_limit: int | None = None,
    progress: Progress | None = None,
    dtype: ops.BitsName | None = None,
) -> RouterClusters:
    """Clusters the rows of a router weight by Euclidean distance, exactly, on all processors.

    Up to 2.5 GiB the distances are held as a matrix; a larger router, or one with a lower `memory_limit`, is clustered
    in passes over its rows with the same result. Ctrl-C ends a run within moments, but for "star" with `n_clusters` and
    the tree of single linkage, which go on to their end.

    Args:
        router: Rows [n, d], float32, float16, bfloat16 or float64, as NumPy array or torch tensor; a `.npy` file or
            ``"FILE.safetensors:TENSOR"``, which is mapped and not loaded; or one of `stun_ext.model_routers`.
        n_clusters: Ends with so many clusters, in [1, n].
        threshold: Merges up to this height ("star": strictly below it). With neither, everything is merged and the
            result can be `cut` anywhere.
        linkage: "single", "complete", "average", "ward" or "centroid", as SciPy names and defines them; or "star", the
            rule of the released STUN code (see `stun_ext.ops.star_clusters`), which needs one of the two above.
        full_tree: Go on merging to the top, for pictures and other cuts. Otherwise a run ends at the clusters that
            were asked for, which for large routers is quicker.
        memory_limit: Bytes of working memory, beside the rows. None: 2.5 GiB; 2 GiB for "star".
        progress: Called now and then with the fraction done ("star" with `n_clusters`: never); returning False ends the
            run with RuntimeError.
        dtype: "bfloat16" if the array holds bfloat16 bits as uint16.

    Returns:
        Labels, tree and all else; see `RouterClusters`.

    Raises:
        TypeError: No array, or one of another dtype.
        FileNotFoundError: No such file.
        ValueError: An argument is out of its range, or the rows are not finite, or the file is damaged, or
            `memory_limit` is too low (the message says what is needed).
        RuntimeError: `progress` ended the run.
    """
    source = _rows(router, dtype)
    rows, bits = source.rows, source.dtype
    check_request(linkage, n_clusters, threshold)
    if linkage == "star" and full_tree:
        raise ValueError('[cluster_router] "star" has no tree, got full_tree=True')
    n = len(rows)
    if n_clusters is not None and not 1 <= n_clusters <= n:
        raise ValueError(f"[cluster_router] n_clusters must be in [1, {n}], got {n_clusters}")
    Z, reached = None, threshold
    if linkage == "star":
        if n_clusters is not None:
            labels, reached = _star_count(rows, n_clusters, memory_limit, bits)
        else:
            assert threshold is not None  # by check_request
            labels = ops.star_clusters_rows(
                rows, threshold, memory_limit=memory_limit, progress=progress, dtype=bits
            )
    else:
        # Centroid heights can decrease: merges below the threshold may come after one above it.
        ends = not full_tree and linkage != "centroid"
        Z = ops.linkage(
            rows,
            linkage,
            memory_limit=memory_limit,
            n_clusters=1 if n_clusters is None or full_tree else n_clusters,
            height=threshold if ends else None,
            progress=progress,
            dtype=bits,
        )
        count = 1 if n_clusters is None and threshold is None else n_clusters
        labels = ops.cut_tree(Z, count, threshold, n_observations=n)
        if count is not None:
            reached = _last_height(Z, n, count)
    return RouterClusters(labels, linkage, reached, Z, rows.shape[1], source.name or None, source.layer)


def _rows(router: Any, dtype: ops.BitsName | None) -> Router:
    """The router's rows in host memory, or mapped."""
    if isinstance(router, (str, os.PathLike)):
        router = open_router(router)
    if isinstance(router, Router):
        return router if dtype is None else replace(router, dtype=dtype)
    if hasattr(router, "detach"):  # a tensor; the operations would return tensors for it
        if router.is_meta:
            raise ValueError("[cluster_router] router must hold values, got a tensor on the meta device")
        router = router.detach().cpu()
        if str(router.dtype) == "torch.bfloat16":
            import torch

            router, dtype = router.view(torch.uint16), "bfloat16"
        router = router.numpy()
    if getattr(router, "ndim", None) != 2:
        found = f"shape {list(router.shape)}" if hasattr(router, "shape") else type(router).__name__
        raise (ValueError if hasattr(router, "shape") else TypeError)(
            f"[cluster_router] router must be a matrix [n, d], got {found}"
        )
    return Router("", router, dtype)


def check_request(linkage: str, n_clusters: int | None, threshold: float | None) -> None:
    """Raises ValueError for arguments of `cluster_router` that no router could make legal."""
    if linkage not in LINKAGES:
        raise ValueError(f"[cluster_router] linkage must be one of {', '.join(LINKAGES)}, got {linkage!r}")
    if n_clusters is not None and threshold is not None:
        raise ValueError("[cluster_router] n_clusters and threshold exclude each other, got both")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("[cluster_router] threshold must be a number, got nan")
    if linkage == "star" and n_clusters is None and threshold is None:
        raise ValueError('[cluster_router] "star" needs n_clusters or threshold, got neither')


def _star_count(
    rows: npt.NDArray[Any], n_clusters: int, memory_limit: int | None, bits: ops.BitsName | None
) -> tuple[npt.NDArray[np.int64], float]:
    """The star rule by number needs every distance: the threshold is searched over them."""
    n, limit = len(rows), STAR_MEMORY if memory_limit is None else memory_limit
    needed = 24 * n * n  # float32 distances, and their pairs while they are sorted
    if needed > limit or n > 65536:
        raise ValueError(
            f'[cluster_router] "star" with n_clusters sorts all distances of n <= 65,536 rows: {n:,} rows take '
            f"{needed / 1e9:.1f} GB, memory_limit is {limit / 1e9:.1f}; raise it, or give a threshold"
        )
    return ops.star_clusters_count(ops.pairwise_distances(rows, dtype=bits), n_clusters)


def _last_height(Z: npt.NDArray[np.float64], n: int, n_clusters: int | None) -> float | None:
    merges = n - (n_clusters or n)
    return float(Z[merges - 1, 2]) if merges else None


# Files ------------------------------------------------------------------------------------------------------


def check_format(path: str | os.PathLike[str]) -> str:
    """The suffix of a file that clusters can be saved to.

    Raises:
        ValueError: Another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        raise ValueError(f"[RouterClusters.save] a .npz or .json file is legal, got {os.fspath(path)!r}")
    return suffix


def save_arrays(path: str | os.PathLike[str], clusters: Mapping[str, RouterClusters]) -> None:
    """Writes ``labels`` and ``Z`` of several routers to one .npz file, each name after its key as prefix."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for prefix, found in clusters.items():
        arrays[f"{prefix}labels"] = found.labels
        if found.Z is not None:
            arrays[f"{prefix}Z"] = found.Z
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy types the keywords as its own option
