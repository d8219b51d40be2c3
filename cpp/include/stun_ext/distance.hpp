// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// Pairwise Euclidean distances between the rows of a router (STUN, arXiv 2409.06211, stage 1).
///
/// d(i,j) = ‖x_i − x_j‖₂ in float64: √(‖x_i‖² + ‖x_j‖² − 2 x_i·x_j), and √Σ(x_i − x_j)² on the original values where
/// the former would lose more than four bits (or d < 64): near-duplicate rows and rows with a large common mean keep
/// their order. The relative error is at most 16 (138 + ⌈d/1024⌉) 2^-53, that is 2.6e-13 for d = 7,168; equal rows are
/// at distance 0. A distance depends on its two rows alone, and the order of its sums on d alone: the result is
/// bit-for-bit the same for every thread count and instruction set. If `divide_by_frobenius`, every distance is divided
/// by ‖X‖_F.
///
/// @param rows  [n, d] float32, float16, bfloat16 or float64, any strides, n >= 1, d >= 1, finite.
/// @param out   [n, n] float32 or float64, written completely: symmetric, zero diagonal; a distance beyond the range of
///              its type becomes +Inf.
/// @throws std::invalid_argument on a wrong shape or dtype, on NaN or Inf (naming the row), or if
///         `divide_by_frobenius` and all of X is zero or its norm overflows.
void pairwise_distances(ConstMatrixView rows, bool divide_by_frobenius, MatrixView out,
                        Executor& executor = default_executor());

/// The same distances, condensed: pairs (0,1), (0,2), …, (n−2,n−1) as scipy.spatial.distance.pdist orders them.
/// @param out  n(n−1)/2 float64.
void condensed_distances(ConstMatrixView rows, Span<double> out, Executor& executor = default_executor());

/// Co-activation distances of the released STUN code: D = −A / |mean(A)|, the mean over all E² entries.
///
/// @param counts  A [E, E] float32, float64 or int64: tokens routed to both experts, symmetric, zero diagonal.
/// @param out     [E, E] float32 or float64; the diagonal is zero.
/// @throws std::invalid_argument if A is not square, not symmetric, not finite, has a non-zero diagonal or mean zero.
void coactivation_distances(ConstMatrixView counts, MatrixView out);

/// Mixed distances: D = pairwise_distances(X, divide_by_frobenius) − mix · A / |mean(A)|, added in float64.
/// @throws std::invalid_argument as the two above, if X and A disagree on E, or if `mix` is not finite.
void mixed_distances(ConstMatrixView rows, ConstMatrixView counts, double mix, bool divide_by_frobenius, MatrixView out,
                     Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
