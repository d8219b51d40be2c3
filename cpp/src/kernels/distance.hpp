// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// Partial sums kept per pair of rows. Column j of a row is added to lane j % kLanes, columns in ascending order, each
/// as one subtraction, one multiplication and one addition in float64 (never fused). Every instruction set follows
/// this order, so all give the same bits; eight float64 lanes are one AVX-512, two AVX2 or four SSE2 registers.
constexpr std::int64_t kLanes = 8;

/// Adds the squared differences of every row of `a` with every row of `b` to the lanes of the pair.
/// @param cols   a multiple of kLanes (pad with zeros, which change no sum).
/// @param lanes  [a_rows, b_rows, kLanes].
using SquaredDifferencesKernel = void(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                                      std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols,
                                      double* lanes) noexcept;

struct DistanceKernels {
  SquaredDifferencesKernel* squared_differences;
};

extern const DistanceKernels distance_scalar;
inline constexpr const DistanceKernels& distance_avx2 = distance_scalar;
inline constexpr const DistanceKernels& distance_avx512 = distance_scalar;
inline constexpr const DistanceKernels& distance_neon = distance_scalar;

}  // namespace stun_ext::detail
