# SPDX-License-Identifier: Apache-2.0
"""Pairwise distances of router rows: ours, SciPy, torch.cdist, and how fast a float32 product of the rows is."""

from collections.abc import Callable
from functools import partial

from ops_common import OPTIONS, measure, milliseconds, table  # before NumPy: it sets the threads

# isort: split
import numpy as np
import torch
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import pdist

from stun_ext import ops

NOTE = """Milliseconds, median (interquartile range). float32 Gaussian rows. "sgemm" is NumPy's `X @ Y.T` with Y a copy
of X: no distances yet, and the rate that "of sgemm" compares with, both by 2 n² d operations. SciPy computes in
float64; the cast is part of its time. "error" is the worst relative error against float64 on rows 1e-3 apart around a
common mean: it decides if near-duplicates keep their order. Their time is "near-duplicates": products cancel for all
pairs, so that they are summed again by differences."""

LAYERS_NOTE = """Milliseconds for all layers, one after the other: distances of the layer's 128 x 7168 float32 rows,
complete linkage, and (ours) the allocation of 20% fewer experts over the layers. SciPy runs on one thread."""


def products(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return X @ Y.T


def torch_distances(X: np.ndarray) -> np.ndarray:
    return torch.cdist(*[torch.from_numpy(X)] * 2).numpy()


def scipy_distances(X: np.ndarray) -> np.ndarray:
    return pdist(X.astype(np.float64))


def worst_error(distances: np.ndarray, exact: np.ndarray, n: int) -> float:
    condensed = distances if distances.ndim == 1 else distances[np.triu_indices(n, 1)]
    return float(np.max(np.abs(condensed - exact) / exact))


def distances() -> None:
    header = [
        "n, d",
        "stun_ext",
        "of sgemm",
        "sgemm",
        "scipy pdist",
        "torch cdist",
        "stun_ext, near-duplicates",
    ]
    rows = []
    for n, d in [(128, 7168), (384, 7168), (1024, 4096), (4096, 4096)]:
        X = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
        close = (3 + 1e-3 * np.random.default_rng(1).standard_normal((n, d))).astype(np.float32)
        is_large = n * n * d > 1e10
        candidates: dict[str, Callable[[], object]] = {
            "ours": partial(ops.pairwise_distances, X),
            "sgemm": partial(products, X, X.copy()),
            "torch": partial(torch_distances, X),
            "close": partial(ops.pairwise_distances, close),
        }
        if not is_large or OPTIONS.large:
            candidates["scipy"] = partial(scipy_distances, X)
        times = measure(candidates)
        ratio = times["sgemm"][0] / times["ours"][0]
        row = [f"{n}, {d}", milliseconds(times["ours"]), f"{100 * ratio:.0f}%", milliseconds(times["sgemm"])]
        row.append(milliseconds(times["scipy"]) if "scipy" in times else "–")
        row += [milliseconds(times["torch"]), milliseconds(times["close"])]
        if not is_large:
            exact = pdist(close.astype(np.float64))
            row[1] += f", error {worst_error(ops.pairwise_distances(close), exact, n):.0e}"
            row[5] += f", error {worst_error(torch_distances(close), exact, n):.0e}"
        rows.append(row)
    table("Pairwise distances", NOTE, header, rows)


def cluster_layers(layers: list[np.ndarray]) -> None:
    by_layer = [ops.pairwise_distances(X) for X in layers]
    upper = np.triu_indices(len(layers[0]), 1)
    for D in by_layer:
        ops.linkage(D[upper], "complete")
    ops.allocate_experts(by_layer, int(0.8 * sum(map(len, layers))))


def cluster_layers_by_scipy(layers: list[np.ndarray]) -> None:
    for X in layers:
        scipy_linkage(scipy_distances(X), "complete")


def all_layers() -> None:
    rng = np.random.default_rng(2)
    layers = [rng.standard_normal((128, 7168)).astype(np.float32) for _ in range(35)]
    times = measure(
        {
            "ours": partial(cluster_layers, layers),
            "scipy": partial(cluster_layers_by_scipy, layers),
        }
    )
    row = ["35", milliseconds(times["ours"]), milliseconds(times["scipy"])]
    table("All layers of a model", LAYERS_NOTE, ["layers", "stun_ext", "scipy, no allocation"], [row])


if __name__ == "__main__":
    distances()
    all_layers()
