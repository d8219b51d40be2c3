# SPDX-License-Identifier: Apache-2.0
"""The star rule against the released labels and a literal loop; the allocation against exhaustion."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import ops_reference as ref
import pytest
import torch

from stun_ext import ops


def distances(rng: np.random.Generator, n: int, *, ties: bool = False, dtype: str = "float32") -> np.ndarray:
    D = rng.integers(1, 6, (n, n)) / 4 if ties else rng.random((n, n))
    D = np.triu(D, 1)
    return (D + D.T).astype(dtype)


@pytest.mark.parametrize("case", range(30))
def test_released_labels(data: Path, case: int) -> None:
    with np.load(data / "expert_clusters.npz") as vectors:
        D, thresholds, labels = (vectors[f"{case}_{name}"] for name in ("D", "thr", "labels"))
    assert len(thresholds) == 5
    for threshold, expected in zip(thresholds, labels, strict=True):
        np.testing.assert_array_equal(ops.star_clusters(D, threshold), expected)
        np.testing.assert_array_equal(
            ref.star_rule(D, threshold), expected
        )  # so the literal loop may be trusted


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 21, 40])
def test_equals_the_literal_loop(n: int, dtype: str, ties: bool) -> None:
    rng = np.random.default_rng(n)
    D = distances(rng, n, ties=ties, dtype=dtype)
    points = ref.star_breakpoints([D])
    for threshold in rng.choice(points, min(len(points), 12), replace=False):
        for min_clusters in {1, max(1, n // 3), n}:
            got = ops.star_clusters(D, threshold, min_clusters)
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, ref.star_rule(D, threshold, min_clusters))


def test_is_not_complete_linkage() -> None:
    x = np.array([[0], [1], [3], [4.2]])
    D = np.abs(x - x.T)
    np.testing.assert_array_equal(ops.star_clusters(D, 4), [0, 0, 0, 0])
    np.testing.assert_array_equal(ops.cut_tree(ops.linkage(x, "complete"), height=4), [0, 0, 2, 2])


def test_threshold_is_strict() -> None:
    D = np.array([[0, 0.5], [0.5, 0]])
    np.testing.assert_array_equal(ops.star_clusters(D, 0.5), [0, 1])
    np.testing.assert_array_equal(ops.star_clusters(D, np.nextafter(0.5, 1)), [0, 0])


def test_infinite_distances_never_merge_and_the_diagonal_is_not_read() -> None:
    D = distances(np.random.default_rng(1), 8)
    D[:4, 4:] = D[4:, :4] = np.inf
    np.fill_diagonal(D, np.nan)
    labels = ops.star_clusters(D, np.inf)
    np.testing.assert_array_equal(labels, [0, 0, 0, 0, 4, 4, 4, 4])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_count(n: int, ties: bool) -> None:
    D = distances(np.random.default_rng(n), n, ties=ties)
    for k in range(1, n + 1):
        labels, threshold = ops.star_clusters_count(D, k)
        assert len(np.unique(labels)) == k
        np.testing.assert_array_equal(labels, ref.star_rule(D, threshold, k))
    assert ops.star_clusters_count(D, n)[1] == -np.inf


def test_count_out_of_reach() -> None:
    D = np.full((4, 4), np.inf)
    D[0, 1] = D[1, 0] = 1
    labels, _ = ops.star_clusters_count(D, 3)
    np.testing.assert_array_equal(labels, [0, 0, 2, 3])
    with pytest.raises(ValueError, match=r"^\[star_clusters_count\] .*2"):
        ops.star_clusters_count(D, 2)


def test_the_upper_triangle_decides() -> None:
    D = distances(np.random.default_rng(7), 9)
    for threshold in (0.3, 0.6):
        np.testing.assert_array_equal(
            ops.star_clusters(np.triu(D, 1), threshold), ops.star_clusters(D, threshold)
        )


def test_torch_in_torch_out() -> None:
    D = torch.from_numpy(distances(np.random.default_rng(2), 9))
    labels, threshold = ops.star_clusters_count(D, 4)
    assert isinstance(labels, torch.Tensor)
    assert isinstance(threshold, float)
    assert isinstance(ops.star_clusters(D, threshold), torch.Tensor)


def broken(kind: str) -> np.ndarray:
    D = distances(np.random.default_rng(3), 6)
    if kind == "square":
        return D[:, :5]
    if kind == "empty":
        return D[:0, :0]
    D[2, 4] = D[4, 2] = {"nan": np.nan, "-inf": -np.inf}[kind]
    return D


@pytest.mark.parametrize(
    ("kind", "message"),
    [("square", r"\[6, 5\]"), ("empty", r"\[0, 0\]"), ("nan", "row 2"), ("-inf", "row 2")],
)
def test_illegal_distances(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[star_clusters\] .*{message}"):
        ops.star_clusters(broken(kind), 0.5)
    with pytest.raises(ValueError, match=rf"^\[star_clusters_count\] .*{message}"):
        ops.star_clusters_count(broken(kind), 1)
    with pytest.raises(ValueError, match=rf"^\[allocate_experts\] .*{message}"):
        ops.allocate_experts([distances(np.random.default_rng(0), 6), broken(kind)], 8)


def test_star_arguments() -> None:
    D = distances(np.random.default_rng(4), 6)
    with pytest.raises(ValueError, match=r"^\[star_clusters\] threshold must not be NaN"):
        ops.star_clusters(D, np.nan)
    for k in (0, 7):
        with pytest.raises(
            ValueError, match=rf"^\[star_clusters\] min_clusters must be in \[1, 6\], got {k}"
        ):
            ops.star_clusters(D, 0.5, k)
        with pytest.raises(
            ValueError, match=rf"^\[star_clusters_count\] n_clusters must be in \[1, 6\], got {k}"
        ):
            ops.star_clusters_count(D, k)
    with pytest.raises(
        TypeError, match=r"^\[star_clusters\] D must have dtype float32 or float64, got float16"
    ):
        ops.star_clusters(D.astype(np.float16), 0.5)


# Allocation -------------------------------------------------------------------------------------------------


def literal_counts(
    layers: list[np.ndarray], threshold: float, min_experts: int, n_group: int
) -> tuple[int, ...]:
    counts = []
    for D in layers:
        size = len(D) // n_group
        blocks = [D[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(n_group)]
        kept = [len(np.unique(ref.star_rule(block, threshold, min_experts // n_group))) for block in blocks]
        counts.append(n_group * max(kept))
    return tuple(counts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("min_experts", "n_group"), [(1, 1), (3, 1), (2, 2), (4, 2)])
def test_allocation_is_the_nearest_reachable(min_experts: int, n_group: int, ties: bool) -> None:
    rng = np.random.default_rng(min_experts + 10 * n_group)
    layers = [distances(rng, n, ties=ties) * scale for n, scale in ((8, 1.0), (6, 0.5), (10, 2.0))]
    reachable: dict[int, float] = {}
    for threshold in ref.star_breakpoints(layers):
        reachable.setdefault(sum(literal_counts(layers, threshold, min_experts, n_group)), threshold)
    for total in range(3 * min_experts, 25):
        result = ops.allocate_experts(layers, total, min_experts, n_group=n_group)
        nearest = min(abs(total - t) for t in reachable)
        assert result.requested_total == total
        assert result.reached_total == max(t for t in reachable if abs(total - t) == nearest)
        assert result.reached_total == sum(result.counts)
        assert result.counts == literal_counts(layers, result.threshold, min_experts, n_group)


def test_allocation_takes_three_dimensions_and_tensors() -> None:
    stack = np.stack([distances(np.random.default_rng(seed), 8) for seed in range(3)])
    expected = ops.allocate_experts(list(stack), 15)
    assert ops.allocate_experts(stack, 15) == expected
    assert ops.allocate_experts(torch.from_numpy(stack), 15) == expected
    assert isinstance(expected.counts, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        expected.threshold = 0.0  # type: ignore[misc]


def test_allocation_where_nothing_can_merge() -> None:
    apart = np.full((4, 4), np.inf)
    result = ops.allocate_experts([apart, apart], 4)
    assert result.counts == (4, 4)
    assert (result.requested_total, result.reached_total) == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 1}, r"total must be in \[2, 14\], got 1"),
        ({"total": 15}, r"total must be in \[2, 14\], got 15"),
        ({"total": 8, "min_experts": 0}, r"min_experts must be in \[1, 8\] for layer 0, got 0"),
        ({"total": 14, "min_experts": 7}, r"min_experts must be in \[1, 6\] for layer 1, got 7"),
        ({"total": 8, "n_group": 0}, r"n_group .*0"),
        ({"total": 8, "min_experts": 4, "n_group": 4}, r"4"),  # six experts have no four equal groups
        ({"total": 8, "min_experts": 3, "n_group": 2}, r"min_experts .*3"),
    ],
)
def test_allocation_errors(arguments: dict[str, int], message: str) -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(ValueError, match=rf"^\[allocate_experts\] .*{message}"):
        ops.allocate_experts([distances(rng, 8), distances(rng, 6)], **arguments)


def test_allocation_needs_layers_of_matrices() -> None:
    with pytest.raises(ValueError, match=r"^\[allocate_experts\] "):
        ops.allocate_experts([], 1)
    with pytest.raises(
        ValueError, match=r"^\[allocate_experts\] distances_per_layer\[1\] must have 2 dimensions, got 1"
    ):
        ops.allocate_experts([np.zeros((2, 2)), np.zeros(2)], 3)
    with pytest.raises(TypeError, match=r"^\[allocate_experts\] distances_per_layer\[0\] must be .*got list"):
        ops.allocate_experts([[[0.0, 1.0], [1.0, 0.0]]], 1)


def test_every_threshold_between_breakpoints_says_the_same() -> None:
    D = distances(np.random.default_rng(6), 10)
    points = [p for p in ref.star_breakpoints([D]) if np.isfinite(p)]
    for low, high in itertools.pairwise(points):
        np.testing.assert_array_equal(ops.star_clusters(D, (low + high) / 2), ops.star_clusters(D, high))
