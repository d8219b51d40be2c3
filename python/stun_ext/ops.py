# SPDX-License-Identifier: Apache-2.0
"""The algorithms of the compiled core, as typed functions on arrays.

Every function takes NumPy arrays or torch tensors and returns the kind of its first array argument; a torch
result lies on that argument's device. Masks of CUDA tensors are made on their device, on torch's current
stream, where the library was built with CUDA (`build_info`); these functions wait for it, to return counts and
raise errors. Other operations and devices go through host memory, ``requires_grad`` is detached, and any other
CPU object with ``__dlpack__`` is read too (the result is then NumPy). Matrices are never copied on the way in:
strided, transposed and read-only ones are read where they lie. bfloat16 comes as torch, as
``ml_dtypes.bfloat16``, or as its bits in uint16 together with ``dtype="bfloat16"``.

All functions check their arguments before any work: ``TypeError`` for a wrong kind or dtype, ``ValueError``
for a wrong shape or value, with a message such as ``[cut_tree] n_clusters must be in [1, 8], got 9``. They
release the GIL, may be called from several threads at once, and give the same bits for every number of
threads and, but for the last bits of matrix products, every instruction set.

"STUN" below is Lee et al., ACL 2025, arXiv 2409.06211; "Wanda" is Sun et al., ICLR 2024, arXiv 2306.11695.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from stun_ext import _core

if TYPE_CHECKING:
    import torch

__all__ = [
    "Allocation",
    "PackedMatrix",
    "allocate_experts",
    "apply_mask_",
    "build_info",
    "coactivation_distances",
    "cpu_info",
    "cut_tree",
    "dense_matmul",
    "linkage",
    "mixed_distances",
    "nm_mask",
    "nm_prune_",
    "num_threads",
    "pack",
    "packed_from_buffers",
    "packed_matmul",
    "pairwise_distances",
    "set_num_threads",
    "star_clusters",
    "star_clusters_count",
    "star_clusters_rows",
    "unpack",
    "wanda_mask",
    "wanda_prune_",
    "wanda_scores",
]

ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
BitsName: TypeAlias = Literal["bfloat16"]


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


# Distances --------------------------------------------------------------------------------------------------


def pairwise_distances(
    X: ArrayT, *, divide_by_frobenius: bool = False, dtype: BitsName | None = None
) -> ArrayT:
    """Euclidean distances between the rows of a router weight (STUN, section 4.2).

    d(i, j) = ||x_i - x_j||_2, summed in float64 by products of the rows, and by their differences where
    products would cancel: near-duplicate rows and rows with a large common mean keep their order.

    Args:
        X: Rows, [n, d], float32, float16, bfloat16 or float64; n >= 1, d >= 1, finite.
        divide_by_frobenius: Divide every distance by the Frobenius norm of all of X.
        dtype: "bfloat16" if X holds bfloat16 bits as uint16.

    Returns:
        float32 [n, n], symmetric with a zero diagonal.

    Raises:
        TypeError: X is no array, or of another dtype.
        ValueError: X is not 2-D or empty, holds NaN or Inf (the row is named), or is all zero with
            `divide_by_frobenius`.
    """
    return _like(X, _core.pairwise_distances(_host("pairwise_distances", "X", X), divide_by_frobenius, dtype))


def coactivation_distances(A: ArrayT) -> ArrayT:
    """Distances of the released STUN code between experts that are chosen together: D = -A / |mean(A)|.

    The mean is taken over all E*E entries, zero diagonal included. The distances are not positive: the more
    often two experts share a token, the lower.

    Args:
        A: Co-activation counts, [E, E], float32, float64 or int64: tokens routed to both experts; symmetric,
            finite, zero diagonal.

    Returns:
        float32 [E, E] with a zero diagonal.

    Raises:
        TypeError: A is no array, or of another dtype.
        ValueError: A is not square, not symmetric, not finite, has a non-zero diagonal, or its mean is zero.
    """
    return _like(A, _core.coactivation_distances(_host("coactivation_distances", "A", A)))


def mixed_distances(
    X: ArrayT, A: Array, mix: float, *, divide_by_frobenius: bool = False, dtype: BitsName | None = None
) -> ArrayT:
    """Router distances lowered by co-activation: D = pairwise_distances(X) - mix * A / |mean(A)|.

    The mixed similarity of STUN, section 4.2; the two terms are added in float64.

    Args:
        X: Router rows, [E, d], as in `pairwise_distances`.
        A: Co-activation counts, [E, E], as in `coactivation_distances`.
        mix: Weight of the co-activation term; finite.
        divide_by_frobenius: As in `pairwise_distances`.
        dtype: "bfloat16" if X holds bfloat16 bits as uint16.

    Returns:
        float32 [E, E], symmetric with a zero diagonal.

    Raises:
        TypeError: As the two functions above.
        ValueError: As the two functions above, if X and A disagree on E, or if `mix` is not finite.
    """
    rows, counts = _host("mixed_distances", "X", X), _host("mixed_distances", "A", A)
    return _like(X, _core.mixed_distances(rows, counts, mix, divide_by_frobenius, dtype))


# Clusters ---------------------------------------------------------------------------------------------------


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
    return _like(D, _core.star_clusters(_host("star_clusters", "D", D), threshold, min_clusters))


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
    labels, threshold = _core.star_clusters_count(_host("star_clusters_count", "D", D), n_clusters)
    return _like(D, labels), threshold


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
    host = _host("linkage", "Y", Y)
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
    limit = _memory_limit("linkage", memory_limit)
    return _like(Y, _core.linkage(host, method, dtype, limit, n_clusters, height, progress))


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
    return _like(Z, _core.cut_tree(_host("cut_tree", "Z", Z), n_clusters, height, n_observations))


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
    limit = _memory_limit("star_clusters_rows", memory_limit)
    rows = _host("star_clusters_rows", "X", X)
    return _like(X, _core.star_clusters_rows(rows, threshold, min_clusters, limit, progress, dtype))


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
        _host("allocate_experts", f"distances_per_layer[{i}]", D) for i, D in enumerate(distances_per_layer)
    ]
    threshold, counts, requested, reached = _core.allocate_experts(layers, total, min_experts, n_group)
    return Allocation(threshold, tuple(counts), requested, reached)


# Weights ----------------------------------------------------------------------------------------------------


def wanda_scores(W: ArrayT, input_sq_norm: Array | None = None, *, dtype: BitsName | None = None) -> ArrayT:
    """Wanda scores (Wanda, equation 1): S_ij = |W_ij| * sqrt(input_sq_norm_j).

    Args:
        W: Weights, [R, C], float32, float16 or bfloat16, finite; a row is one output feature.
        input_sq_norm: [C], float32 (float64 is rounded to it): per input feature the sum of its square over
            the calibration tokens that reached this matrix; finite, >= 0. None means magnitude: S = |W|.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        float32 [R, C].

    Raises:
        TypeError: W or `input_sq_norm` is no array, or of another dtype.
        ValueError: Shapes disagree, NaN or Inf (the row or feature is named), or a negative norm.
    """
    weight, norms = _host("wanda_scores", "W", W), _norms("wanda_scores", input_sq_norm)
    return _like(W, _core.wanda_scores(weight, norms, dtype))


def wanda_mask(
    W: ArrayT,
    input_sq_norm: Array | None,
    sparsity: float | Array,
    *,
    dtype: BitsName | None = None,
    out: ArrayT | None = None,
) -> ArrayT:
    """The weights that Wanda keeps: in every row the lowest scores go, exactly as many as asked.

    Ties go from the lowest column up, as a stable ascending sort has them.

    Args:
        W: Weights, [R, C], as in `wanda_scores`.
        input_sq_norm: [C] or None (magnitude), as in `wanda_scores`.
        sparsity: A share in [0, 1): int(C * sparsity) weights of each row go, truncated as in the released
            code. Or integers, [R]: the number of weights to prune in each row, in [0, C].
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.
        out: Where the mask goes, bool [R, C] with contiguous rows, apart from W's memory; by default a new array,
            which the system clears first.

    Returns:
        bool [R, C], True = kept: `out` where it is given.

    Raises:
        TypeError: As `wanda_scores`, `sparsity` is neither a number nor an integer array, or `out` is no bool array.
        ValueError: As `wanda_scores`, `sparsity` is out of its range or of the wrong length, or `out` is read-only or
            not as above. Where W holds NaN or Inf, what `out` holds then is unspecified.
    """
    gpu = _wanda_on_gpu(W, input_sq_norm, sparsity, dtype)
    if gpu is not None and (mask := gpu.mask(out)) is not None:
        gpu.run("wanda_mask", _core.cuda_wanda_mask, gpu.norms, gpu.each, gpu.counts, mask)
        return mask if out is None else out
    weight, norms = _host("wanda_mask", "W", W), _norms("wanda_mask", input_sq_norm)
    share = _sparsity("wanda_mask", sparsity)
    return _into("wanda_mask", W, out, lambda to: _core.wanda_mask(weight, norms, share, dtype, to))


def wanda_prune_(
    W: Array, input_sq_norm: Array | None, sparsity: float | Array, *, dtype: BitsName | None = None
) -> int:
    """Zeroes in place the weights that `wanda_mask` would prune; no mask is made.

    Args:
        W: Writable weights, [R, C], as in `wanda_scores`; any strides, so ``expert.T`` of a transposed expert
            works. A transposed tensor on a GPU is copied there and back, one of any other device to the host and back.
        input_sq_norm: As in `wanda_mask`.
        sparsity: As in `wanda_mask`.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        How many weights of W are exactly zero afterwards, those included that were zero before.

    Raises:
        TypeError: As `wanda_mask`.
        ValueError: As `wanda_mask`, or W is read-only or shares memory between its own elements. W is
            unchanged then; on a GPU, where NaN and Inf are met only while pruning, their rows are.
    """
    gpu = _wanda_on_gpu(W, input_sq_norm, sparsity, dtype)
    if gpu is not None:
        return gpu.run_in_place("wanda_prune", _core.cuda_wanda_prune_, gpu.norms, gpu.each, gpu.counts)
    weight, norms = _host("wanda_prune_", "W", W), _norms("wanda_prune_", input_sq_norm)
    zeros = _core.wanda_prune_(weight, norms, _sparsity("wanda_prune_", sparsity), dtype)
    _write_back(W, weight)
    return zeros


def nm_mask(
    scores: ArrayT, n: int, m: int, *, dtype: BitsName | None = None, out: ArrayT | None = None
) -> ArrayT:
    """n:m mask: of every m consecutive columns the n highest scores stay; ties prune the lowest column first.

    Args:
        scores: [R, C], float32, float16 or bfloat16, without NaN; C a multiple of m.
        n: Kept per block, 1 <= n < m.
        m: Block length.
        dtype: "bfloat16" if `scores` holds bfloat16 bits as uint16.
        out: Where the mask goes, as in `wanda_mask`.

    Returns:
        bool [R, C], True = kept: `out` where it is given.

    Raises:
        TypeError: `scores` is no array, or of another dtype, or `out` is no bool array.
        ValueError: n or m is illegal, C is no multiple of m, NaN (the row is named; what `out` holds then is
            unspecified), or `out` is not as in `wanda_mask`.
    """
    gpu = _on_gpu(scores, None, dtype)
    if gpu is not None and (mask := gpu.mask(out)) is not None:
        gpu.run("nm_mask", _core.cuda_nm_mask, n, m, mask)
        return mask if out is None else out
    host = _host("nm_mask", "scores", scores)
    return _into("nm_mask", scores, out, lambda to: _core.nm_mask(host, n, m, dtype, to))


def nm_prune_(W: Array, input_sq_norm: Array | None, n: int, m: int, *, dtype: BitsName | None = None) -> int:
    """n:m pruning by Wanda, in place: of every m consecutive weights those with the n highest scores stay.

    Ties prune the lowest column first. No scores and no mask are stored.

    Args:
        W: Writable weights, [R, C], as in `wanda_prune_`; C a multiple of m.
        input_sq_norm: [C] or None (magnitude), as in `wanda_scores`.
        n: Kept per block, 1 <= n < m.
        m: Block length.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        How many weights of W are exactly zero afterwards, those included that were zero before.

    Raises:
        TypeError: As `wanda_scores`.
        ValueError: As `wanda_scores`, n or m is illegal, C is no multiple of m, or W is read-only or shares memory
            between its own elements. W is unchanged then; on a GPU the blocks with NaN or Inf are.
    """
    gpu = _on_gpu(W, input_sq_norm, dtype)
    if gpu is not None:
        return gpu.run_in_place("nm_prune", _core.cuda_nm_prune_, gpu.norms, n, m)
    weight, norms = _host("nm_prune_", "W", W), _norms("nm_prune_", input_sq_norm)
    zeros = _core.nm_prune_(weight, norms, n, m, dtype)
    _write_back(W, weight)
    return zeros


def apply_mask_(W: Array, mask: Array, *, dtype: BitsName | None = None) -> None:
    """Zeroes in place the weights whose mask is False; the others keep their bits.

    Args:
        W: Writable weights, [R, C], float32, float16 or bfloat16, any strides. A tensor of another device is
            copied to the host and back.
        mask: bool [R, C].
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Raises:
        TypeError: W or `mask` is no array, or of another dtype.
        ValueError: Shapes disagree, or W is read-only or shares memory between its own elements.
    """
    weight = _host("apply_mask_", "W", W)
    _core.apply_mask_(weight, _host("apply_mask_", "mask", mask), dtype)
    _write_back(W, weight)


# Packed weights ---------------------------------------------------------------------------------------------


class PackedMatrix:
    """Pruned weights as a bitmap and the values that are left; made by `pack` or `packed_from_buffers`.

    Of bfloat16 weights of which a share q is left it takes q + 1/16 of the dense bytes. The layout is that of the C++
    header ``stun_ext/sparse.hpp``; it is the same on every machine.
    """

    __slots__ = ("_handle",)
    _handle: _core.PackedMatrix

    def __init__(self) -> None:
        raise TypeError("[PackedMatrix] use pack or packed_from_buffers")

    @classmethod
    def _of(cls, handle: _core.PackedMatrix) -> PackedMatrix:
        self = object.__new__(cls)
        self._handle = handle
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the dense weight."""
        return self._handle.shape

    @property
    def dtype(self) -> str:
        """The values' type: "float32", "float16" or "bfloat16"."""
        return self._handle.dtype

    @property
    def nnz(self) -> int:
        """Weights that are present."""
        return self._handle.nnz

    @property
    def values(self) -> npt.NDArray[np.uint8]:
        """The values' bytes, then zeros; read-only."""
        return self._handle.values

    @property
    def masks(self) -> npt.NDArray[np.uint32]:
        """One bit per weight; read-only."""
        return self._handle.masks

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return int(self.values.nbytes + self.masks.nbytes)

    def __repr__(self) -> str:
        """Shape, dtype and number of values."""
        return f"PackedMatrix(shape={self.shape}, dtype={self.dtype!r}, nnz={self.nnz})"


def pack(W: Array, *, dtype: BitsName | None = None) -> PackedMatrix:
    """Packs a weight of which many elements are zero; `unpack` gives it back bit for bit.

    Args:
        W: Weights, [R, C], float32, float16 or bfloat16, any strides and values. What has the bits of +0 is absent;
            -0.0 and NaN are kept, so zero weights by `apply_mask_` or ``W[~mask] = 0``: ``W * mask`` leaves -0.0.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        A matrix in memory of its own.

    Raises:
        TypeError: W is no array, or of another dtype.
        ValueError: W is not 2-D.
    """
    return PackedMatrix._of(_core.pack(_host("pack", "W", W), dtype))


def packed_from_buffers(
    shape: tuple[int, int], dtype: str, values: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint32]
) -> PackedMatrix:
    """A packed matrix in memory that is there already, for instance of a mapped file; nothing is copied.

    Every mask is read and counted, and damaged or hostile buffers are refused: whatever is accepted is safe to use,
    provided that the memory does not change afterwards.

    Args:
        shape: (rows, columns) of the dense weight.
        dtype: "float32", "float16" or "bfloat16".
        values: uint8, contiguous, as `PackedMatrix.values`.
        masks: uint32, contiguous, as `PackedMatrix.masks`.

    Returns:
        A matrix that keeps the arrays alive.

    Raises:
        TypeError: A buffer is no NumPy array of its dtype.
        ValueError: A size, an alignment or the number of bits set is wrong, or there is something where zeros belong.
    """
    return PackedMatrix._of(_core.packed_from_buffers(shape[0], shape[1], dtype, values, masks))


def unpack(packed: PackedMatrix, out: ArrayT, *, dtype: BitsName | None = None) -> ArrayT:
    """Writes the dense weight, bit for bit.

    Args:
        packed: Of `pack` or `packed_from_buffers`.
        out: Writable, of the packed weight's shape and dtype, any strides.
        dtype: "bfloat16" if `out` holds bfloat16 bits as uint16.

    Returns:
        `out`.

    Raises:
        TypeError: `out` is no array, or of another dtype.
        ValueError: `out` is of another shape or dtype, read-only, or shares memory between its own elements.
    """
    host = _host("unpack", "out", out)
    _core.unpack(packed._handle, host, dtype)
    _write_back(out, host)
    return out


def packed_matmul(x: ArrayT, packed: PackedMatrix, *, dtype: BitsName | None = None) -> ArrayT:
    """X Wᵀ with a packed W, as ``torch.nn.functional.linear(x, W)``.

    Products are summed in float32; the error before the result is rounded is at most C * 2**-23 * sum(|x * w|).
    Results are the same for every number of threads, but the order of the sum depends on the number of tokens and on
    the instruction set. bfloat16 times bfloat16 is fastest where the processor has instructions for it, which read
    subnormal numbers as 0.

    Args:
        x: Tokens, [M, C], float32, float16 or bfloat16.
        packed: A weight [R, C].
        dtype: "bfloat16" if x holds bfloat16 bits as uint16.

    Returns:
        [M, R] of x's dtype.

    Raises:
        TypeError: x is no array, or of another dtype.
        ValueError: x is not 2-D, or has another number of columns than the weight.
    """
    tokens = _host("packed_matmul", "x", x)
    out = _new_like(tokens, packed.shape[0])
    _core.packed_matmul(tokens, packed._handle, out, dtype)
    return _like(x, out)


def dense_matmul(x: ArrayT, W: Array, *, dtype: BitsName | None = None) -> ArrayT:
    """`packed_matmul` with a dense W: faster where fewer than about 15% of the weights are zero.

    Args:
        x: Tokens, [M, C], float32, float16 or bfloat16.
        W: Weights, [R, C], float32, float16 or bfloat16; the elements of a row lie together.
        dtype: "bfloat16" if x and W hold bfloat16 bits as uint16.

    Returns:
        [M, R] of x's dtype.

    Raises:
        TypeError: x or W is no array, or of another dtype.
        ValueError: Shapes disagree, or the elements of a row do not lie together.
    """
    tokens, weight = _host("dense_matmul", "x", x), _host("dense_matmul", "W", W)
    rows = weight.shape[0] if getattr(weight, "ndim", 0) == 2 else 0  # else refused below
    out = _new_like(tokens, rows)
    _core.dense_matmul(tokens, weight, out, dtype)
    return _like(x, out)


# The library ------------------------------------------------------------------------------------------------


def num_threads() -> int:
    """Threads of the core: by `set_num_threads`, else STUN_EXT_NUM_THREADS, else the usable processors."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Sets the threads of the core for the whole process; results do not depend on it.

    Args:
        n: At least 1.

    Raises:
        ValueError: n < 1.
    """
    _core.set_num_threads(n)


def cpu_info() -> dict[str, Any]:
    """The processor as the core sees it.

    Returns:
        ``model`` (its name), ``features`` (instruction set extensions), ``supported`` (instruction sets with
        kernels that run here, slowest first) and ``isa`` (the one in use: STUN_EXT_ISA, else the fastest).

    Raises:
        RuntimeError: STUN_EXT_ISA names something that is unknown or not supported here.
    """
    model, features, supported, isa = _core.cpu_info()
    return {"model": model, "features": features, "supported": supported, "isa": isa}


def build_info() -> dict[str, Any]:
    """Version, CUDA runtime and devices, and threads of the core that is loaded."""
    return {
        "version": _core.__version__,
        "cuda": _core.cuda_build_info(),
        "cuda_devices": _core.cuda_device_count(),
        "num_threads": _core.num_threads(),
    }


# Kinds of arrays --------------------------------------------------------------------------------------------


def _is_tensor(array: object) -> bool:
    """Whether this is a torch tensor, without importing torch: who has a tensor has imported it."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(array, tensor)


def _host(operation: str, name: str, array: Any) -> Any:
    """The array as the core reads it: a tensor detached and in host memory, anything else as it is."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"[{operation}] {name} must be a plain array, got a masked one (its mask would be ignored)"
        )
    if not _is_tensor(array):
        return array
    if array.is_meta:
        raise ValueError(f"[{operation}] {name} must hold values, got a tensor on the meta device")
    return array.detach().cpu()


def _memory_limit(operation: str, memory_limit: int | None) -> int:
    if memory_limit is None:
        return 0
    if memory_limit < 1:
        raise ValueError(f"[{operation}] memory_limit must be a positive number of bytes, got {memory_limit}")
    return int(memory_limit)


def _norms(operation: str, input_sq_norm: Any) -> Any:
    return None if input_sq_norm is None else _host(operation, "input_sq_norm", input_sq_norm)


def _sparsity(operation: str, sparsity: Any) -> float | npt.NDArray[np.int64]:
    """A share as float, or counts per row as int64."""
    if isinstance(sparsity, Real) and not isinstance(sparsity, bool):
        return float(sparsity)
    if isinstance(sparsity, np.ndarray) or _is_tensor(sparsity):
        counts = np.asarray(_host(operation, "sparsity", sparsity))
        if counts.dtype.kind in "iu":
            return counts.astype(np.int64, copy=False)
        found = f"an array of {counts.dtype}"
    else:
        found = type(sparsity).__name__
    raise TypeError(
        f"[{operation}] sparsity must be a number in [0, 1) or an integer array of counts, got {found}"
    )


class _OnGpu:
    """A matrix in the memory of a CUDA device, and where the core reports what it finds there."""

    def __init__(self, W: torch.Tensor, norms: torch.Tensor | None) -> None:
        self.torch = sys.modules["torch"]
        self.W = W
        self.norms = norms
        self.each = 0
        self.counts: torch.Tensor | None = None

    def mask(self, out: Any) -> Any:
        """`out`, or a new mask for None; None where `out` is not what the library writes into."""
        if out is None:
            return self.torch.empty(self.W.shape, dtype=self.torch.bool, device=self.W.device)
        is_usual = _is_tensor(out) and out.device == self.W.device and out.dtype == self.torch.bool
        return out.detach() if is_usual and out.shape == self.W.shape and out.is_contiguous() else None

    def run(self, operation: str, function: Callable[..., None], *arguments: Any) -> int:
        """Queues on torch's current stream, waits, raises what was found, and returns the zeros."""
        status = self.torch.zeros(4, dtype=self.torch.int64, device=self.W.device)
        addresses = [argument.data_ptr() if _is_tensor(argument) else argument or 0 for argument in arguments]
        stream = self.torch.cuda.current_stream(self.W.device).cuda_stream
        function(self.W, *addresses, status.data_ptr(), stream)
        found = status.tolist()
        if any(found[1:]):
            name = "scores" if operation == "nm_mask" else "weight"
            rows, cols = self.W.shape
            _core.cuda_throw_if_illegal(operation, name, found, rows, cols, operation == "nm_mask")
        return int(found[0])

    def run_in_place(self, operation: str, function: Callable[..., None], *arguments: Any) -> int:
        W = self.W
        if W.stride(0) != 1 or W.stride(1) < W.shape[0] or W.shape[1] == 1:
            return self.run(operation, function, *arguments)
        self.W = W.contiguous()  # a transposed matrix: two copies cost less than reading across it
        try:
            return self.run(operation, function, *arguments)
        finally:
            W.copy_(self.W)


@functools.cache
def _has_cuda() -> bool:
    """Whether the library was built with CUDA and finds a device; asked for CUDA tensors alone."""
    return bool(_core.cuda_device_count() > 0)


def _on_gpu(W: Any, input_sq_norm: Any, dtype: BitsName | None) -> _OnGpu | None:
    """The arguments as the CUDA library takes them, or None: what is unusual or wrong is the host's to judge."""
    if dtype is not None or not _is_tensor(W) or not W.is_cuda or not _has_cuda():
        return None
    torch = sys.modules["torch"]
    if W.dtype not in (torch.float32, torch.float16, torch.bfloat16) or W.dim() != 2 or W.is_neg():
        return None
    norms = None
    if input_sq_norm is not None:
        floats = (torch.float32, torch.float64)
        is_usual = _is_tensor(input_sq_norm) and input_sq_norm.dtype in floats and input_sq_norm.dim() == 1
        if not is_usual or input_sq_norm.shape[0] != W.shape[1] or W.shape[1] == 0:
            return None
        norms = input_sq_norm.detach().to(W.device, torch.float32).contiguous()
    return _OnGpu(W.detach(), norms)


def _wanda_on_gpu(W: Any, input_sq_norm: Any, sparsity: Any, dtype: BitsName | None) -> _OnGpu | None:
    """As `_on_gpu`, with the counts to prune."""
    gpu = _on_gpu(W, input_sq_norm, dtype)
    if gpu is None or gpu.W.shape[1] > _core.CUDA_MOST_COLUMNS:
        return None
    amount = _sparsity("wanda_mask", sparsity)
    if isinstance(amount, float):
        if not 0 <= amount < 1:
            return None
        gpu.each = int(gpu.W.shape[1] * amount)
    elif amount.shape == gpu.W.shape[:1]:
        gpu.counts = gpu.torch.from_numpy(np.ascontiguousarray(amount)).to(gpu.W.device)
    else:
        return None
    return gpu


def _like(reference: ArrayT, array: Any) -> ArrayT:
    """A result of the core as the kind, and on the device, of `reference`."""
    if _is_tensor(reference):
        if not _is_tensor(array):
            array = sys.modules["torch"].from_numpy(array)
        array = array.to(reference.device)
    result: ArrayT = array
    return result


def _new_like(tokens: Any, rows: int) -> Any:
    """An uninitialised [M, rows] of the kind and dtype of `tokens`, whose rank the core checks."""
    n_tokens = tokens.shape[0] if getattr(tokens, "ndim", 0) == 2 else 0
    if _is_tensor(tokens):
        return tokens.new_empty((n_tokens, rows))
    return np.empty((n_tokens, rows), getattr(tokens, "dtype", np.float32))


def _into(operation: str, reference: ArrayT, out: ArrayT | None, write: Callable[[Any], Any]) -> ArrayT:
    """The result of `write(out)`: `out`, or, where that is None, a new array like `reference`."""
    if out is None:
        return _like(reference, write(None))
    host = _host(operation, "out", out)
    write(host)
    _write_back(out, host)
    return out


def _write_back(target: Any, host: Any) -> None:
    """Copies an in-place result to the device it came from; on the CPU `host` is the target's own memory."""
    if _is_tensor(target) and target.device.type != "cpu":
        target.detach().copy_(host)
