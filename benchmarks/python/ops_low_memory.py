# SPDX-License-Identifier: Apache-2.0
"""Clustering of rows without a matrix of distances: wall and CPU time and peak memory, beside SciPy.

Each run is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

# n, d, spread of the clusters that the rows are drawn around (None: one Gaussian), memory_limit, with SciPy
CASES = [
    (4096, 1024, None, 40_000_000, True),
    (16384, 1024, None, 300_000_000, False),
    (16384, 1024, 0.5, 300_000_000, False),
]
LARGE = [(50_000, 4096, 0.5, 500_000_000, False)]


def run(case: list, method: str, library: str) -> None:
    """One run, in its own process; prints its figures as JSON."""
    import numpy as np

    n, d, spread, limit, _ = case
    generator = np.random.default_rng(0)
    if spread is None:
        rows = generator.standard_normal((n, d), dtype=np.float32)
    else:
        centers = generator.standard_normal((n // 20, d), dtype=np.float32)
        rows = centers[np.arange(n) % len(centers)]
        for first in range(0, n, 4096):
            block = rows[first : first + 4096]
            block += np.float32(spread) * generator.standard_normal(block.shape, dtype=np.float32)
    if library == "scipy":
        from scipy.cluster.hierarchy import linkage

        call = lambda: linkage(rows, method)  # noqa: E731
    else:
        from stun_ext import ops

        call = lambda: ops.linkage(rows, method, memory_limit=limit)  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    call()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # ru_maxrss would count what the parent had before this program started.
    peak = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak * 1024 - rows.nbytes}))


def main() -> None:
    """Runs the cases and prints a table."""
    # The options of ops_common are read there; it pins the threads of the children too.
    import ops_common

    print(f"# Clustering without a matrix\n\n{ops_common.machine()}\n")
    header = [
        "n, d",
        "rows",
        "method",
        "library",
        "wall s",
        "CPU s",
        "peak memory of the process beside the rows, MB",
    ]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for case in CASES + (LARGE if ops_common.OPTIONS.large else []):
        for method in ("complete", "single", "average", "ward"):
            if method == "average" and case[0] > 4096:
                continue  # minutes: see the results
            for library in ("stun_ext", "scipy") if case[4] else ("stun_ext",):
                arguments = json.dumps([list(case), method, library])
                done = subprocess.run([sys.executable, __file__, arguments], capture_output=True, check=True)
                figures = json.loads(done.stdout)
                kind = "Gaussian" if case[2] is None else "clustered"
                print(
                    f"| {case[0]}, {case[1]} | {kind} | {method} | {library} | {figures['wall']:.2f} "
                    f"| {figures['cpu']:.1f} | {figures['peak'] / 1e6:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("["):
        run(*json.loads(sys.argv[1]))
    else:
        main()
