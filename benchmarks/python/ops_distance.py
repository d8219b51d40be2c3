# SPDX-License-Identifier: Apache-2.0
"""Pairwise distances of router rows: ours, SciPy, and torch.cdist with and without its Gram matrix."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from ops_common import OPTIONS, measure, milliseconds, table
from scipy.spatial.distance import pdist

from stun_ext import ops

NOTE = """Milliseconds, median (interquartile range). float32 Gaussian rows. "error" is the worst relative
error against float64 on rows 1e-3 apart around a common mean: it decides if near-duplicates keep their order.
SciPy computes in float64; the cast is part of its time."""

CANDIDATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "stun_ext": ops.pairwise_distances,
    "scipy pdist": lambda X: pdist(X.astype(np.float64)),
    "torch cdist": lambda X: torch.cdist(*[torch.from_numpy(X)] * 2).numpy(),
    "torch cdist, no Gram": lambda X: torch.cdist(
        *[torch.from_numpy(X)] * 2, compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy(),
}


def worst_error(distances: np.ndarray, exact: np.ndarray, n: int) -> float:
    condensed = distances if distances.ndim == 1 else distances[np.triu_indices(n, 1)]
    return float(np.max(np.abs(condensed - exact) / exact))


def main() -> None:
    rows = []
    for n, d in [
        (64, 2048),
        (128, 7168),
        (384, 7168),
        (1024, 4096),
        *([(4096, 4096)] if OPTIONS.large else []),
    ]:
        X = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
        close = (3 + 1e-3 * np.random.default_rng(1).standard_normal((n, d))).astype(np.float32)
        exact = pdist(close.astype(np.float64))
        times = measure({name: partial(function, X) for name, function in CANDIDATES.items()})
        rows.append([f"{n}, {d}"])
        for name, function in CANDIDATES.items():
            rows[-1].append(
                f"{milliseconds(times[name])}, error {worst_error(function(close), exact, n):.0e}"
            )
    table("Pairwise distances", NOTE, ["n, d", *CANDIDATES], rows)


if __name__ == "__main__":
    main()
