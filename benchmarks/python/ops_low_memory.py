# SPDX-License-Identifier: Apache-2.0
"""Clustering of rows without a matrix of distances: wall and CPU time and peak memory, beside SciPy and fastcluster.

Rows lie in memory-mapped .npy files, and each run is a process of its own. Its memory is what it allocates from the
call on: pages of the file, the interpreter and its modules do not count; converted copies of the rows do.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

METHODS = ("single", "complete", "average", "ward", "centroid")
STAR = "star rule, 80% kept"
EACH_CLUSTER = 20  # rows


class Rows(NamedTuple):
    """A file of rows."""

    kind: str  # "Gaussian": one; "clustered": see generate()
    n: int
    d: int
    dtype: str = "float32"


class Case(NamedTuple):
    """A clustering of rows."""

    rows: Rows
    method: str
    limit: int
    options: Mapping[str, Any] = MappingProxyType({})
    libraries: tuple[str, ...] = ("stun_ext",)


def cases(is_large: bool, is_huge: bool) -> list[Case]:
    """What to run: by default 4,096 rows, beside the other libraries."""
    all_libraries = ("stun_ext", "scipy", "fastcluster")
    result = [Case(Rows("Gaussian", 4096, 1024), method, 40_000_000, {}, all_libraries) for method in METHODS]
    if is_large:
        # A minute each for the others; fastcluster's linkage_vector takes several, and is left to the 4,096 rows.
        with_pdist = {"complete": all_libraries, "average": all_libraries}
        for method in METHODS:
            libraries = with_pdist.get(method, all_libraries[:2])
            result.append(Case(Rows("Gaussian", 16_384, 1024), method, 300_000_000, {}, libraries))
        result += [Case(Rows("clustered", 16_384, 1024), method, 300_000_000) for method in METHODS[:4]]
        rows = Rows("clustered", 50_000, 4096)
        for options in ({"n_clusters": rows.n // 2}, {"height": 60.0}, {}):
            result.append(Case(rows, "complete", 1_000_000_000, options))
    if is_huge:
        rows = Rows("clustered", 100_000, 1024)
        result += [
            Case(rows, "single", 1_000_000_000),
            Case(rows, STAR, 1_000_000_000),
            Case(rows, "complete", 1_000_000_000, {"n_clusters": rows.n // 2}),
            Case(
                Rows("clustered", 100_000, 4096, "bfloat16"),
                "complete",
                2_000_000_000,
                {"n_clusters": 50_000},
            ),
        ]
    return result


def generate(rows: Rows, path: Path) -> None:
    """Writes the file, and beside it the threshold of the star rule that keeps 80% of clustered rows.

    Clustered: four fifths of the rows lie in clusters of 20 with spreads from 0.05 (near-duplicates) to 0.7, the others
    alone; the order is random.
    """
    generator = np.random.default_rng(0)
    order = generator.permutation(rows.n)
    n_clusters = rows.n * 4 // 5 // EACH_CLUSTER if rows.kind == "clustered" else 0
    stored = np.float32 if rows.dtype == "float32" else np.uint16
    file = np.lib.format.open_memmap(path, mode="w+", dtype=stored, shape=(rows.n, rows.d))

    def store(members: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        if stored is np.uint16:  # bfloat16 bits, rounded half up
            values = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
        file[members] = values

    distances = []
    for cluster in range(n_clusters):
        spread = np.float32(0.05 + 0.65 * cluster / n_clusters)
        center = generator.standard_normal(rows.d, dtype=np.float32)
        values = center + spread * generator.standard_normal((EACH_CLUSTER, rows.d), dtype=np.float32)
        store(order[cluster * EACH_CLUSTER : (cluster + 1) * EACH_CLUSTER], values)
        distances.append(values)
    for first in range(n_clusters * EACH_CLUSTER, rows.n, 1024):
        members = order[first : first + 1024]
        store(members, generator.standard_normal((len(members), rows.d), dtype=np.float32))
    file.flush()
    if rows.kind == "clustered" and rows.dtype == "float32":
        from stun_ext import ops

        # Rows of different clusters are farther than any threshold that keeps so many: clusters can be counted alone.
        layers = [ops.pairwise_distances(values) for values in distances]
        total = rows.n * 4 // 5 - (rows.n - n_clusters * EACH_CLUSTER)
        path.with_suffix(".json").write_text(json.dumps(ops.allocate_experts(layers, total).threshold))


def run(path: str, rows: list[Any], method: str, limit: int, options: dict[str, Any], library: str) -> None:
    """One run, in its own process: a line when it starts, and its figures as JSON."""
    X = np.load(path, mmap_mode="r")
    result: Any
    if library == "scipy":
        from scipy.cluster.hierarchy import linkage as scipy_linkage

        call = lambda: scipy_linkage(X, method)  # noqa: E731
    elif library == "fastcluster":
        import fastcluster
        from scipy.spatial.distance import pdist

        if method in ("single", "ward", "centroid"):  # the methods that it has without distances in memory
            call = lambda: fastcluster.linkage_vector(X, method)  # noqa: E731
        else:
            call = lambda: fastcluster.linkage(pdist(X), method)  # noqa: E731
    else:
        from stun_ext import ops

        dtype = "bfloat16" if rows[3] == "bfloat16" else None
        if method == STAR:
            threshold = json.loads(Path(path).with_suffix(".json").read_text())
            call = lambda: ops.star_clusters_rows(X, threshold, memory_limit=limit)  # noqa: E731
        else:
            call = lambda: ops.linkage(X, method, memory_limit=limit, dtype=dtype, **options)  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF)
    print("started", flush=True)
    start = time.perf_counter()
    result = call()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    left = len(np.unique(result)) if method == STAR else rows[1] - len(result)
    print(json.dumps({"wall": wall, "cpu": cpu, "left": left}))


def watch(path: Path, case: Case, library: str) -> dict[str, float]:
    """The figures of a run, with its peak of allocated memory, sampled every 5 ms from outside."""
    arguments = json.dumps([str(path), case.rows, case.method, case.limit, dict(case.options), library])
    with subprocess.Popen(
        [sys.executable, __file__, arguments], stdout=subprocess.PIPE, text=True
    ) as process:

        def allocated() -> int:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
            return 0  # it has just ended

        assert process.stdout is not None
        process.stdout.readline()
        first = peak = allocated()
        while process.poll() is None:
            peak = max(peak, allocated())
            time.sleep(0.005)
        output = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{library}, {case}: exit status {process.returncode}")
    figures: dict[str, float] = json.loads(output)
    return figures | {"peak": peak - first}


def main() -> None:
    """Runs the cases and prints a table."""
    # The options of ops_common are read there; it pins the threads of the children too.
    import ops_common

    options = ops_common.OPTIONS
    header = [
        "n, d",
        "rows",
        "method",
        "library",
        "limit, MB",
        "clusters left",
        "wall s",
        "CPU s",
        "peak beside the rows, MB",
    ]
    lines = [f"# Clustering without a matrix\n\n{ops_common.machine()}\n"]
    lines.append("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(options.directory or temporary)
        for case in cases(options.large, options.huge):
            name = ", ".join([case.method] + [f"{key}={value:g}" for key, value in case.options.items()])
            rows = case.rows
            label = f"{rows.n}, {rows.d} | {rows.kind}, {rows.dtype} | {name}"
            if options.only and options.only not in label:
                continue
            path = directory / f"{rows.kind}-{rows.n}-{rows.d}-{rows.dtype}.npy"
            if not path.exists():
                generate(rows, path)
            for library in case.libraries if options.baselines else case.libraries[:1]:
                if options.generate:
                    continue
                figures = watch(path, case, library)
                limit = f"{case.limit // 1_000_000}" if library == "stun_ext" else "-"
                print(
                    f"| {label} | {library} | {limit} | {figures['left']} | {figures['wall']:.2f} "
                    f"| {figures['cpu']:.1f} | {figures['peak'] / 1e6:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("["):
        run(*json.loads(sys.argv[1]))
    else:
        main()
