# SPDX-License-Identifier: Apache-2.0
"""Distances between experts."""

from __future__ import annotations

from stun_ext import _core
from stun_ext.ops._arrays import Array, ArrayT, BitsName, like, to_host


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
    return like(
        X, _core.pairwise_distances(to_host("pairwise_distances", "X", X), divide_by_frobenius, dtype)
    )


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
    return like(A, _core.coactivation_distances(to_host("coactivation_distances", "A", A)))


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
    rows, counts = to_host("mixed_distances", "X", X), to_host("mixed_distances", "A", A)
    return like(X, _core.mixed_distances(rows, counts, mix, divide_by_frobenius, dtype))
