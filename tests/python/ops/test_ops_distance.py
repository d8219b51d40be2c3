# SPDX-License-Identifier: Apache-2.0
"""Distances against SciPy in float64, and against the released code's matrices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import ops_reference as ref
import pytest
import torch
from scipy.spatial.distance import cdist

from stun_ext import ops

DTYPES = ["float32", "float16", "bfloat16", "float64"]


def counts_of(rng: np.random.Generator, n: int) -> np.ndarray:
    A = rng.integers(0, 40, (n, n)).astype(np.float64)
    A = np.triu(A, 1)
    return A + A.T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 1), (3, 7), (5, 8), (17, 64), (33, 257), (40, 1000)])
def test_pairwise_equals_float64_rounded_once(dtype: str, n: int, d: int) -> None:
    X = ref.weight(np.random.default_rng(n * 1000 + d), (n, d), dtype)
    expected = cdist(X.double().numpy(), X.double().numpy())
    got = ops.pairwise_distances(ref.as_numpy(X))
    assert got.dtype == np.float32
    assert got.shape == (n, n)
    # Float64 inside and one rounding to float32: half a unit in the last place, and the sums' own 1e-13.
    np.testing.assert_allclose(got, expected, rtol=2.0**-24 * 1.01, atol=0)
    np.testing.assert_array_equal(got, got.T)
    assert not got.diagonal().any()


def test_near_duplicates_keep_their_order() -> None:
    # Rows 1e-3 apart with a common mean of 100: float32 Gram matrices lose all of it.
    rng = np.random.default_rng(0)
    X = (100 + 1e-3 * rng.standard_normal((60, 512))).astype(np.float32)
    expected = cdist(X.astype(np.float64), X.astype(np.float64))
    upper = np.triu_indices(60, 1)
    np.testing.assert_allclose(ops.pairwise_distances(X)[upper], expected[upper], rtol=1e-7)


def test_large_values_do_not_overflow() -> None:
    X = np.array([[3e30, 0], [0, 4e30]], dtype=np.float32)
    assert ops.pairwise_distances(X)[0, 1] == pytest.approx(5e30, rel=1e-6)


def test_divide_by_frobenius() -> None:
    X = np.random.default_rng(1).standard_normal((9, 20))
    expected = cdist(X, X) / np.linalg.norm(X)
    np.testing.assert_allclose(ops.pairwise_distances(X, divide_by_frobenius=True), expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_coactivation(dtype: str) -> None:
    A = counts_of(np.random.default_rng(2), 23)
    expected = -A / abs(A.mean())
    got = ops.coactivation_distances(A.astype(dtype))
    np.testing.assert_allclose(got, expected, rtol=2e-7)
    assert not got.diagonal().any()


@pytest.mark.parametrize("divide", [False, True])
def test_mixed(divide: bool) -> None:
    rng = np.random.default_rng(3)
    X, A = rng.standard_normal((12, 30)).astype(np.float32), counts_of(rng, 12)
    router = cdist(X.astype(np.float64), X.astype(np.float64))
    expected = (router / np.linalg.norm(X.astype(np.float64)) if divide else router) - 0.3 * A / A.mean()
    got = ops.mixed_distances(X, A, 0.3, divide_by_frobenius=divide)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got, got.T)


@pytest.mark.parametrize("case", range(30))
def test_released_distances(data: Path, case: int) -> None:
    with np.load(data / "expert_clusters.npz") as vectors:
        meta = json.loads(str(vectors["meta"]))[case]
        X, A, D = (vectors[f"{case}_{name}"] for name in "WAD")
    if meta["mode"] == "router":
        got = ops.pairwise_distances(X, divide_by_frobenius=meta["norm"])
    elif meta["mode"] == "coactivation":
        got = ops.coactivation_distances(A)
    else:
        got = ops.mixed_distances(X, A, meta["mix"], divide_by_frobenius=meta["norm"])
    # The released code is the less exact side: it works in float32, with torch.cdist by a Gram matrix. Allow
    # a few float32 roundings of the largest distance.
    off_diagonal = ~np.eye(len(D), dtype=bool)
    np.testing.assert_allclose(got[off_diagonal], D[off_diagonal], rtol=2e-5, atol=2e-6 * np.abs(D).max())


def test_torch_in_torch_out() -> None:
    X = torch.randn(6, 10, dtype=torch.bfloat16)
    got = ops.pairwise_distances(X)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.cdist(X.double(), X.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    X = np.ones((5, 9), dtype=np.float32)
    X[3, 7] = value
    with pytest.raises(ValueError, match=r"^\[pairwise_distances\] .*row 3"):
        ops.pairwise_distances(X)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_rows_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^\[pairwise_distances\] "):
        ops.pairwise_distances(np.zeros(shape, dtype=np.float32))


def test_all_zero_cannot_be_normalised() -> None:
    zeros = np.zeros((3, 4), dtype=np.float32)
    assert not ops.pairwise_distances(zeros).any()
    with pytest.raises(ValueError, match=r"^\[pairwise_distances\] .*zero"):
        ops.pairwise_distances(zeros, divide_by_frobenius=True)


def broken_counts(kind: str) -> np.ndarray:
    A = counts_of(np.random.default_rng(4), 6)
    if kind == "not square":
        return A[:, :5]
    if kind == "mean":
        return np.zeros((6, 6))
    if kind == "diagonal":
        A[2, 2] = 1
    elif kind == "symmetric":
        A[1, 4] += 1
    else:
        A[4, 1] = A[1, 4] = np.nan
    return A


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not square", "square"),
        ("mean", "mean"),
        ("diagonal", "diagonal"),
        ("symmetric", "symmetric"),
        ("nan", "finite"),
    ],
)
def test_illegal_counts(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[coactivation_distances\] .*{message}"):
        ops.coactivation_distances(broken_counts(kind))
    with pytest.raises(ValueError, match=rf"^\[mixed_distances\] .*{message}"):
        ops.mixed_distances(np.eye(6), broken_counts(kind), 0.5)


def test_mixed_arguments_must_agree() -> None:
    A = counts_of(np.random.default_rng(5), 6)
    with pytest.raises(ValueError, match=r"^\[mixed_distances\] "):
        ops.mixed_distances(np.eye(5), A, 0.5)
    with pytest.raises(ValueError, match=r"^\[mixed_distances\] .*mix.* finite, got nan"):
        ops.mixed_distances(np.eye(6), A, float("nan"))
