# SPDX-License-Identifier: Apache-2.0
"""Clustering without a matrix of distances, against SciPy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage as scipy_linkage

import stun_ext
from stun_ext import ops

METHODS = ["single", "complete", "average", "ward", "centroid"]


def rows_of(n, d, seed=0):
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(n // 20, d))
    rows = centers[np.arange(n) % len(centers)] + 0.5 * generator.normal(size=(n, d))
    return rows.astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_linkage_equals_scipy_within_a_memory_limit(method):
    rows = rows_of(800, 24)
    limit = 700_000  # the matrix would take 2.5 MB
    if method == "average":  # distances between all rows of two clusters, in each thread
        limit = 400_000 + 530_000 * ops.num_threads()
    Z = ops.linkage(rows, method, memory_limit=limit)
    expected = scipy_linkage(rows.astype(np.float64), method)
    np.testing.assert_array_equal(Z[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(Z[:, 2], expected[:, 2], rtol=1e-9)


def test_linkage_reads_a_memory_map_and_ends_early(tmp_path):
    rows = rows_of(600, 16)
    np.save(tmp_path / "router.npy", rows)
    mapped = np.load(tmp_path / "router.npy", mmap_mode="r")
    full = ops.linkage(rows, "complete")
    Z = ops.linkage(mapped, "complete", memory_limit=500_000, n_clusters=100)
    np.testing.assert_array_equal(Z, full[:500])
    labels = ops.cut_tree(Z, 100, n_observations=600)
    np.testing.assert_array_equal(labels, ops.cut_tree(full, 100))
    Z = ops.linkage(mapped, "complete", memory_limit=500_000, height=full[300, 2])
    np.testing.assert_array_equal(Z, full[:301])


def test_star_clusters_rows_equals_the_matrix():
    rows = rows_of(500, 20)
    threshold = float(np.quantile(ops.pairwise_distances(rows), 0.02))
    labels = ops.star_clusters_rows(rows, threshold, memory_limit=1_000_000)
    np.testing.assert_array_equal(labels, ops.star_clusters(ops.pairwise_distances(rows), threshold))


def test_progress_is_told_and_can_stop():
    rows = rows_of(3000, 64)
    told = []
    ops.linkage(rows, "complete", memory_limit=3_000_000, progress=told.append)
    assert told == sorted(told)
    assert all(0 <= fraction <= 1 for fraction in told)
    with pytest.raises(RuntimeError, match=r"\[linkage\] stopped"):
        ops.linkage(rows, "complete", memory_limit=3_000_000, progress=lambda _: False)

    def fail(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ops.linkage(rows, "complete", memory_limit=3_000_000, progress=fail)


def test_errors_say_what_is_legal():
    rows = rows_of(400, 8)
    with pytest.raises(ValueError, match=r"memory_limit must be at least \d+ bytes for 400 rows of 8"):
        ops.linkage(rows, "ward", memory_limit=1000)
    with pytest.raises(ValueError, match="positive number of bytes, got 0"):
        ops.linkage(rows, "ward", memory_limit=0)
    with pytest.raises(ValueError, match="memory_limit is for observations"):
        ops.linkage(np.zeros(3), "single", memory_limit=1000)
    with pytest.raises(ValueError, match=r"n_clusters must be in \[1, 400\], got 500"):
        ops.linkage(rows, "ward", n_clusters=500)
    with pytest.raises(ValueError, match="n_observations must be at least 400"):
        ops.cut_tree(ops.linkage(rows, "ward"), 3, n_observations=10)


def test_cpu_info_tells_what_is_in_use():
    info = stun_ext.cpu_info()
    assert info["isa"] in info["supported"]
    assert info["supported"][0] == "scalar"


@pytest.mark.parametrize(
    ("isa", "expected"), [("scalar", "scalar"), ("bogus", "STUN_EXT_ISA must be one of")]
)
def test_the_environment_forces_an_instruction_set(isa, expected):
    code = "import stun_ext; print(stun_ext.cpu_info()['isa'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "STUN_EXT_ISA": isa}, capture_output=True, text=True
    )
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == (isa == "scalar")
