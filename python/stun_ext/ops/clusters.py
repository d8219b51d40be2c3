# SPDX-License-Identifier: Apache-2.0
"""Clusters of experts, and how many experts each layer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stun_ext import _core
from stun_ext.ops._arrays import Array, ArrayT, BitsName, checked_limit, like, to_host


@dataclass(frozen=True)
class Allocation:
    """Experts kept per layer under one threshold; see `allocate_experts`.

    Attributes:
        threshold: Star-rule threshold (strict <) used in every layer.
        counts: Experts kept, per layer.
        requested_total: The total that was asked for.
        reached_total: ``sum(counts)``.
    """

    threshold: float
    counts: tuple[int, ...]
    requested_total: int
    reached_total: int


def star_clusters(D: ArrayT, threshold: float, min_clusters: int = 1) -> ArrayT:
    """Clusters of the released STUN code's rule ("star").

    One pass over the pairs i < j by (distance, i, j): it stops at distance >= threshold or at `min_clusters`
    clusters, skips pairs that share a cluster, and merges if all distances from j to the cluster of i and
    from i to the cluster of j are below the threshold; otherwise the pair's distance becomes infinite for the
    tests that follow. This is not complete linkage, and the number of clusters does not always fall as the
    threshold rises.

    Args:
        D: Distances, [E, E], float32 or float64, symmetric; the upper triangle decides, the diagonal is not
            read. +Inf means "never merge". E at most 65536.
        threshold: Any number but NaN; compared strictly.
        min_clusters: Fewest clusters to leave, in [1, E].

    Returns:
        int64 [E]: the lowest expert in each expert's cluster.

    Raises:
        TypeError: D is no array, or of another dtype.
        ValueError: D is not square, holds NaN or -Inf (the row is named), or an argument is out of its range.
    """
    return like(D, _core.star_clusters(to_host("star_clusters", "D", D), threshold, min_clusters))


def star_clusters_count(D: ArrayT, n_clusters: int) -> tuple[ArrayT, float]:
    """The star rule at exactly `n_clusters` clusters.

    The threshold is searched over the pair distances, with ``min_clusters=n_clusters``, until the rule ends
    there.

    Args:
        D: Distances, [E, E], as in `star_clusters`.
        n_clusters: In [1, E].

    Returns:
        The labels as in `star_clusters`, and the threshold: a pair distance, or an infinity (-Inf when every
        expert stays alone).

    Raises:
        TypeError: As `star_clusters`.
        ValueError: As `star_clusters`, or if infinite distances leave more than `n_clusters` at any
            threshold.
    """
    labels, threshold = _core.star_clusters_count(to_host("star_clusters_count", "D", D), n_clusters)
    return like(D, labels), threshold


def linkage(
    Y: ArrayT,
    method: str,
    *,
    memory_limit: int | None = None,
    n_clusters: int = 1,
    height: float | None = None,
    progress: Callable[[float], bool | None] | None = None,
    dtype: BitsName | None = None,
) -> ArrayT:
    """Agglomerative clustering, in SciPy's layout.

    Equal to ``scipy.cluster.hierarchy.linkage`` where the distances met are distinct. Among equal distances
    the pair with the lowest (lower id, higher id) merges first.

    Args:
        Y: Condensed distances, [n * (n - 1) / 2], float32 or float64, finite; or observations, [n, d],
            float32, float16, bfloat16 or float64. A 2-D array always means observations. Condensed distances
            that are not contiguous float64 are converted. Observations may be memory-mapped.
        method: "single", "complete", "average", "ward" or "centroid"; the last two take condensed distances to
            be Euclidean, as SciPy does.
        memory_limit: Observations only: bytes of working memory. Below what a matrix of n * n distances needs,
            they are computed in several passes over the observations; the merges are the same, heights within
            1e-9 (relative; the last bits of ward's and centroid's vary with the limit and the number of
            threads). None: the matrix up to 2.5 GiB.
        n_clusters: Observations only: end when so many clusters are left.
        height: Observations only: end before the first merge above it.
        progress: Observations only: called now and then with the fraction done; returning False ends the run
            with RuntimeError.
        dtype: "bfloat16" if Y holds bfloat16 bits as uint16.

    Returns:
        float64 [n - 1, 4], or fewer rows if the run ends early: for each merge its two clusters (lower id first;
        n + i is the cluster made by merge i), its height, and its number of observations. Centroid heights can
        decrease.

    Raises:
        TypeError: Y is no array, or of another dtype.
        ValueError: An unknown method, an impossible length, NaN or Inf, distances above 1e150 for ward and
            centroid, an option for observations with condensed distances, a `memory_limit` that is too low
            (the message says what is needed), `n_clusters` out of its range, or a `height` that is NaN.
        RuntimeError: `progress` ended the run.
    """
    host = to_host("linkage", "Y", Y)
    if getattr(host, "ndim", 2) == 1:
        for option, is_given in (
            ("memory_limit", memory_limit is not None),
            ("height", height is not None),
            ("progress", progress is not None),
            ("n_clusters", n_clusters != 1),
        ):
            if is_given:
                raise ValueError(
                    f"[linkage] {option} is for observations (2-D), got condensed distances (1-D)"
                )
    limit = checked_limit("linkage", memory_limit)
    return like(Y, _core.linkage(host, method, dtype, limit, n_clusters, height, progress))


def cut_tree(
    Z: ArrayT,
    n_clusters: int | None = None,
    height: float | None = None,
    *,
    n_observations: int | None = None,
) -> ArrayT:
    """Flat clusters of a dendrogram, by number or by height (give exactly one).

    By number, the first n - n_clusters merges are applied. By height, a merge is applied if it and all merges
    below it are at most `height`, as ``scipy.cluster.hierarchy.fcluster(criterion="distance")`` does.

    Args:
        Z: Linkage matrix, [n - 1, 4], float64: from `linkage` or from SciPy; or its first rows.
        n_clusters: In [1, n]; at least n - len(Z).
        height: Any number but NaN.
        n_observations: n, if Z holds only the first rows.

    Returns:
        int64 [n]: the lowest observation in each observation's cluster.

    Raises:
        TypeError: Z is no array, or not float64.
        ValueError: Z is no dendrogram, both or neither of the other arguments are given, or one is out of its
            range.
    """
    return like(Z, _core.cut_tree(to_host("cut_tree", "Z", Z), n_clusters, height, n_observations))


def star_clusters_rows(
    X: ArrayT,
    threshold: float,
    min_clusters: int = 1,
    *,
    memory_limit: int | None = None,
    progress: Callable[[float], bool | None] | None = None,
    dtype: BitsName | None = None,
) -> ArrayT:
    """The star rule on the distances between rows, without a matrix of them: see `star_clusters`.

    Only the pairs below the threshold are held (about 25 bytes each), so that a huge router can be clustered.
    Distances are float64, where `pairwise_distances` gives float32.

    Args:
        X: Rows, [n, d], as in `pairwise_distances`; may be memory-mapped.
        threshold: Any number but NaN; compared strictly.
        min_clusters: Fewest clusters to leave, in [1, n].
        memory_limit: Bytes of working memory. None: about 2 GiB.
        progress: As in `linkage`.
        dtype: "bfloat16" if X holds bfloat16 bits as uint16.

    Returns:
        int64 [n]: the lowest row in each row's cluster.

    Raises:
        TypeError: X is no array, or of another dtype.
        ValueError: An argument is out of its range, NaN or Inf, or `memory_limit` does not hold the pairs.
        RuntimeError: `progress` ended the run.
    """
    limit = checked_limit("star_clusters_rows", memory_limit)
    rows = to_host("star_clusters_rows", "X", X)
    return like(X, _core.star_clusters_rows(rows, threshold, min_clusters, limit, progress, dtype))


def allocate_experts(
    distances_per_layer: Iterable[Array], total: int, min_experts: int = 1, *, n_group: int = 1
) -> Allocation:
    """One star-rule threshold for all layers, such that the experts kept sum to `total` (STUN, section 4.2).

    The released code bisects a step and may not end; this searches the pair distances themselves, always
    ends, and gives the nearest reachable total. Of equally near totals the larger, of equal totals the lower
    threshold.

    Args:
        distances_per_layer: One [E_l, E_l] matrix per layer, as `star_clusters` takes them (a 3-D array will
            do).
        total: Experts to keep over all layers, between the sum of the minima and the sum of E_l.
        min_experts: Fewest experts of a layer, in [1, E_l].
        n_group: Routing groups of equal, contiguous experts. With groups, experts of different groups never
            merge, a layer keeps n_group times the most clusters of any of its groups, and `min_experts` must
            be a multiple of `n_group`.

    Returns:
        The threshold, the counts per layer, and the totals asked and reached.

    Raises:
        TypeError: A layer is no array, or of another dtype.
        ValueError: Any argument is out of its range, or a layer is illegal.
    """
    layers = [
        to_host("allocate_experts", f"distances_per_layer[{i}]", D) for i, D in enumerate(distances_per_layer)
    ]
    threshold, counts, requested, reached = _core.allocate_experts(layers, total, min_experts, n_group)
    return Allocation(threshold, tuple(counts), requested, reached)
