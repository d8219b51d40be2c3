# SPDX-License-Identifier: Apache-2.0
"""Linkage and cuts against SciPy, and against a naive reference where distances tie."""

from __future__ import annotations

import warnings

import numpy as np
import ops_reference as ref
import pytest
import scipy.cluster.hierarchy as sch
import torch
from scipy.spatial.distance import pdist

from stun_ext import ops

METHODS = ["single", "complete", "average", "ward", "centroid"]


def assert_same_tree(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float64
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(got[:, 2], expected[:, 2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 3, 5, 16, 33, 150, 700, 3000])
def test_condensed_equals_scipy(method: str, n: int) -> None:
    Y = pdist(np.random.default_rng(n).standard_normal((n, 7)))
    assert_same_tree(ops.linkage(Y, method), sch.linkage(Y, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 2), (40, 5), (120, 65)])
def test_rows_equal_scipy(method: str, n: int, d: int) -> None:
    X = np.random.default_rng(n + d).standard_normal((n, d))
    assert_same_tree(ops.linkage(X, method), sch.linkage(X, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_of_every_dtype(method: str, dtype: str) -> None:
    X = ref.weight(np.random.default_rng(7), (30, 12), dtype)
    assert_same_tree(ops.linkage(ref.as_numpy(X), method), sch.linkage(X.double().numpy(), method))


def test_negative_distances() -> None:
    Y = -np.random.default_rng(8).random(45)  # co-activation distances
    assert_same_tree(ops.linkage(Y, "complete"), ref.naive_linkage(Y, 10, "complete"))


@pytest.mark.parametrize("method", ["single", "complete"])
@pytest.mark.parametrize("seed", range(20))
def test_ties_merge_the_lowest_ids(method: str, seed: int) -> None:
    n = 4 + seed
    Y = np.random.default_rng(seed).integers(0, 4, n * (n - 1) // 2).astype(np.float64)
    np.testing.assert_array_equal(ops.linkage(Y, method), ref.naive_linkage(Y, n, method))


@pytest.mark.parametrize("seed", range(20))
def test_ties_of_averages(seed: int) -> None:
    n = 4 + seed % 7
    # Multiples of lcm(1..10)^2: all averages that can occur are integers, so ties are exact in float64.
    Y = np.random.default_rng(seed).integers(0, 4, n * (n - 1) // 2) * 2520.0**2
    np.testing.assert_array_equal(ops.linkage(Y, "average"), ref.naive_linkage(Y, n, "average"))


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_and_zero_rows_merge_first(method: str) -> None:
    X = np.random.default_rng(9).standard_normal((8, 6))
    X[5] = X[1]
    X[[2, 6, 7]] = 0
    Z = ops.linkage(X, method)
    # Height 0, by (lower id, higher id): 1+5, 2+6, then 7 joins the cluster made of 2+6 (id 9).
    np.testing.assert_array_equal(Z[:3], [[1, 5, 0, 2], [2, 6, 0, 2], [7, 9, 0, 3]])


@pytest.mark.parametrize("method", METHODS)
def test_one_observation_has_no_merges(method: str) -> None:
    assert ops.linkage(np.ones((1, 4)), method).shape == (0, 4)
    np.testing.assert_array_equal(ops.cut_tree(np.empty((0, 4)), n_clusters=1), [0])


def test_condensed_float32_and_strided() -> None:
    Y = np.random.default_rng(10).random(90)
    assert_same_tree(ops.linkage(Y[::2], "average"), sch.linkage(Y[::2].copy(), "average"))
    assert_same_tree(ops.linkage(Y[::-2], "average"), sch.linkage(Y[::-2].copy(), "average"))
    narrow = Y[:45].astype(np.float32)
    assert_same_tree(ops.linkage(narrow, "complete"), sch.linkage(narrow.astype(np.float64), "complete"))


def test_torch_in_torch_out() -> None:
    X = torch.randn(9, 4, dtype=torch.bfloat16)
    Z = ops.linkage(X, "ward")
    assert isinstance(Z, torch.Tensor)
    assert_same_tree(Z.numpy(), sch.linkage(X.double().numpy(), "ward"))
    labels = ops.cut_tree(Z, n_clusters=3)
    assert isinstance(labels, torch.Tensor)
    assert labels.dtype == torch.int64


# Cuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_cut_by_number_equals_scipy(method: str) -> None:
    X = np.random.default_rng(11).standard_normal((25, 3))
    Z = sch.linkage(X, method)
    for k in range(1, 26):
        expected = ref.lowest_member(sch.cut_tree(Z, n_clusters=[k])[:, 0])
        got = ops.cut_tree(Z, n_clusters=k)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("method", METHODS)
def test_cut_by_height_equals_fcluster(method: str) -> None:
    rng = np.random.default_rng(12)
    X = rng.integers(0, 5, (30, 2)) + rng.standard_normal((30, 2)) * 0.1
    Z = sch.linkage(X, method)
    if method == "centroid":
        assert (np.diff(Z[:, 2]) < 0).any(), "the case must have inversions"
    heights = np.concatenate([Z[:, 2], Z[:, 2] - 1e-9, [-1.0, 0.0, 1e9, np.inf]])
    for height in heights:
        expected = ref.lowest_member(sch.fcluster(Z, height, criterion="distance"))
        np.testing.assert_array_equal(ops.cut_tree(Z, height=height), expected)


def test_cut_reads_any_layout_of_z() -> None:
    Z = sch.linkage(np.random.default_rng(13).standard_normal((12, 3)), "average")
    expected = ops.cut_tree(Z, n_clusters=4)
    wide = np.zeros((22, 8))
    wide[::2, ::2] = Z
    read_only = Z.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(Z), wide[::2, ::2], Z[::-1].copy()[::-1], read_only):
        np.testing.assert_array_equal(ops.cut_tree(same, n_clusters=4), expected)


# Errors -----------------------------------------------------------------------------------------------------


def test_two_dimensions_mean_observations() -> None:
    D = np.abs(np.random.default_rng(14).standard_normal((6, 6)))
    D += D.T
    np.fill_diagonal(D, 0)  # looks like a distance matrix; SciPy warns, and reads it as rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_tree(ops.linkage(D, "single"), sch.linkage(D, "single"))


@pytest.mark.parametrize(
    ("Y", "method", "error", "message"),
    [
        (np.ones(6), "median", ValueError, r"method must be .*median"),
        (np.ones(5), "single", ValueError, r"5"),
        (np.array([1.0, np.nan, 2.0]), "single", ValueError, r"nan|NaN"),
        (np.array([1.0, 2.0, np.inf]), "complete", ValueError, r"inf"),
        (np.array([1.0, 2.0, 1e151]), "ward", ValueError, r"at most 1e\+150 .* pair \(1, 2\)"),
        (np.ones((2, 2, 2)), "single", ValueError, r"Y must have 1 or 2 dimensions, got 3"),
        (np.array(1.0), "single", ValueError, r"Y must have 1 or 2 dimensions, got 0"),
        (np.ones(6, dtype=np.int64), "single", TypeError, r"Y must have dtype .* got int64"),
        (np.ones(6, dtype=np.float16), "single", TypeError, r"float16"),
        ([1.0, 2.0, 3.0], "single", TypeError, r"Y must be a NumPy array or a tensor .*got list"),
        (np.array([[1.0, np.nan], [0.0, 0.0]]), "ward", ValueError, r"row 0"),
        (np.empty((0, 3)), "single", ValueError, r""),
    ],
)
def test_linkage_errors(Y: object, method: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[linkage\w*\] .*({message})"):
        ops.linkage(Y, method)


GOOD = np.array([[0, 1, 1.0, 2], [2, 3, 2.0, 2], [4, 5, 3.0, 4]])


def changed(row: int, column: int, value: float) -> np.ndarray:
    Z = GOOD.copy()
    Z[row, column] = value
    return Z


@pytest.mark.parametrize(
    ("Z", "arguments", "error", "message"),
    [
        (GOOD, {"n_clusters": 5}, ValueError, r"n_clusters must be in \[1, 4\], got 5"),
        (GOOD, {"n_clusters": 0}, ValueError, r"n_clusters must be in \[1, 4\], got 0"),
        (GOOD, {}, ValueError, r"exactly one of n_clusters and height must be given, got neither"),
        (GOOD, {"n_clusters": 2, "height": 1.0}, ValueError, r"exactly one .* got both"),
        (GOOD, {"height": np.nan}, ValueError, r"height must not be NaN"),
        (GOOD[:, :3], {"n_clusters": 2}, ValueError, r"Z must have shape \(n - 1, 4\), got \(3, 3\)"),
        (GOOD[0], {"n_clusters": 2}, ValueError, r"Z must have 2 dimensions, got 1"),
        (GOOD.astype(np.float32), {"n_clusters": 2}, TypeError, r"Z must have dtype float64, got float32"),
        (changed(0, 1, 6), {"n_clusters": 2}, ValueError, r""),  # a cluster that does not exist yet
        (changed(1, 0, 0), {"n_clusters": 2}, ValueError, r""),  # merged twice
        (changed(1, 0, 2.5), {"n_clusters": 2}, ValueError, r""),  # no id at all
        (changed(1, 0, -1), {"n_clusters": 2}, ValueError, r""),
        (changed(1, 0, np.nan), {"n_clusters": 2}, ValueError, r""),
        (changed(1, 2, np.nan), {"height": 2.0}, ValueError, r""),
    ],
)
def test_cut_tree_errors(
    Z: object, arguments: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"^\[cut_tree\w*\] .*{message}"):
        ops.cut_tree(Z, **arguments)
