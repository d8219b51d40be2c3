# SPDX-License-Identifier: Apache-2.0
"""Linkage of router rows, distances included, and of ready distances: ours, SciPy, fastcluster."""

import importlib
import importlib.util

import numpy as np
import scipy.cluster.hierarchy as sch
from ops_common import OPTIONS, measure, milliseconds, table
from scipy.spatial.distance import pdist

from stun_ext import ops

NOTE = """Milliseconds, median (interquartile range). "rows" includes the distances (float32 rows; SciPy and
fastcluster cluster SciPy's pdist of them), "condensed" takes ready float64 distances."""


def main() -> None:
    fastcluster = importlib.import_module("fastcluster") if importlib.util.find_spec("fastcluster") else None
    names = ["stun_ext", "scipy", *(["fastcluster"] if fastcluster else [])]
    rows = []
    shapes = [(128, 7168), (384, 7168), (1024, 4096), *([(4096, 4096)] if OPTIONS.large else [])]
    for n, d in shapes:
        X = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
        Y = pdist(X.astype(np.float64))
        for method in ("complete", "average", "single", "ward"):
            whole = {"stun_ext": lambda X=X, m=method: ops.linkage(X, m)}
            whole["scipy"] = lambda X=X, m=method: sch.linkage(pdist(X.astype(np.float64)), m)
            merges = {"stun_ext": lambda Y=Y, m=method: ops.linkage(Y, m)} if method != "ward" else {}
            merges["scipy"] = lambda Y=Y, m=method: sch.linkage(Y, m)
            if fastcluster:
                whole["fastcluster"] = lambda X=X, m=method: fastcluster.linkage(
                    pdist(X.astype(np.float64)), m
                )
                merges["fastcluster"] = lambda Y=Y, m=method: fastcluster.linkage(Y, m)
            for kind, candidates in (("rows", whole), ("condensed", merges)):
                times = measure(candidates)
                cells = [milliseconds(times[name]) if name in times else "-" for name in names]
                rows.append([f"{n}, {d}", method, kind, *cells])
    table("Linkage", NOTE, ["n, d", "method", "from", *names], rows)


if __name__ == "__main__":
    main()
