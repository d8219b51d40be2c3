# SPDX-License-Identifier: Apache-2.0
"""Linkage of ready distances, and of router rows with their distances: ours, SciPy, fastcluster.

`--sizes` picks n (at 8,192 two runs each, from 16,384 one); with --threads above 1 all times are wall times, and
ours are taken with one thread and with so many.
"""

import importlib
import importlib.util
from collections.abc import Callable

import numpy as np
import scipy.cluster.hierarchy as sch
from ops_common import CLOCK, OPTIONS, measure, milliseconds, table
from scipy.spatial.distance import pdist

from stun_ext import ops

NOTE = """Milliseconds, median (interquartile range; of two runs, their mean and difference; from 16,384 one run).
"condensed" takes ready float64 distances of Gaussian rows, "rows" includes the distances (float32 rows; SciPy and
fastcluster cluster SciPy's pdist of them). SciPy and fastcluster use one thread."""

METHODS = ("single", "complete", "average", "ward", "centroid")
SIZES = (128, 256, 384, 512, 1024, 2048, 4096)
ROWS = {128: 7168, 384: 7168, 1024: 4096}


def ours(array: np.ndarray, method: str, threads: int) -> Callable[[], object]:
    def run() -> object:
        ops.set_num_threads(threads)
        return ops.linkage(array, method)

    return run


def measure_few(candidates: dict[str, Callable[[], object]], count: int) -> dict[str, tuple[float, float]]:
    for function in candidates.values():
        function()  # warm: memory that a virtual machine has never touched is slow the first time
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(count):
        for name, function in candidates.items():
            start = CLOCK()
            function()
            runs[name].append(CLOCK() - start)
    return {name: (sum(seconds) / count, max(seconds) - min(seconds)) for name, seconds in runs.items()}


def main() -> None:
    fastcluster = importlib.import_module("fastcluster") if importlib.util.find_spec("fastcluster") else None
    threads = sorted({1, OPTIONS.threads})
    names = [*(f"stun_ext, {count} thread(s)" for count in threads), "scipy"]
    names += ["fastcluster"] if fastcluster else []
    others = {"scipy": sch.linkage, **({"fastcluster": fastcluster.linkage} if fastcluster else {})}
    rows = []
    for n in OPTIONS.sizes or SIZES:
        rng = np.random.default_rng(0)
        Y = pdist(rng.standard_normal((n, 64)))
        X = rng.standard_normal((n, ROWS.get(n, 0))).astype(np.float32)
        for kind, array in (("condensed", Y), ("rows", X)):
            if array.shape[-1] == 0:
                continue
            for method in METHODS:
                candidates = {
                    name: ours(array, method, count) for name, count in zip(names, threads, strict=False)
                }
                for name, other in others.items():
                    if kind == "rows":
                        candidates[name] = lambda f=other, X=X, m=method: f(pdist(X.astype(np.float64)), m)
                    else:
                        candidates[name] = lambda f=other, Y=Y, m=method: f(Y, m)
                few = 0 if n < 8192 else 2 if n < 16384 else 1
                times = measure_few(candidates, few) if few else measure(candidates, pause=0.0)
                rows.append([str(n), method, kind, *(milliseconds(times[name]) for name in names)])
    table("Linkage", NOTE, ["n", "method", "from", *names], rows)


if __name__ == "__main__":
    main()
