// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// Partial sums kept per pair of rows. Column j of a row is added to lane j % kLanes, columns in ascending order, each
/// as one fused multiply-add in float64: lane = fma(x − y, x − y, lane) or fma(x, y, lane). Every instruction set
/// follows this order, so all give the same bits; eight float64 lanes are one AVX-512, two AVX2 or four SSE2 registers.
constexpr std::int64_t kLanes = 8;

/// Rows that one call of a `row_with_rows` kernel takes at most.
constexpr std::int64_t kManyRows = 4;

struct DistanceKernels {
  /// Adds the squared differences of every row of `a` with every row of `b` to the lanes of the pair.
  /// @param cols   a multiple of kLanes (pad with zeros, which change no sum).
  /// @param lanes  [a_rows, b_rows, kLanes].
  void (*squared_differences)(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                              std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols, double* lanes) noexcept;

  /// The lanes of squared differences of one contiguous row with up to kManyRows others, any number of columns. `lanes`
  /// is written.
  void (*row_with_rows_f32)(const float* a, const float* const* b, std::int64_t count, std::int64_t cols,
                            double* lanes) noexcept;
  void (*row_with_rows_bf16)(const std::uint16_t* a, const std::uint16_t* const* b, std::int64_t count,
                             std::int64_t cols, double* lanes) noexcept;
  void (*row_with_rows_f16)(const std::uint16_t* a, const std::uint16_t* const* b, std::int64_t count,
                            std::int64_t cols, double* lanes) noexcept;
  void (*row_with_rows_f64)(const double* a, const double* const* b, std::int64_t count, std::int64_t cols,
                            double* lanes) noexcept;

  /// Contiguous elements as float64.
  void (*widen_f32)(const float* from, std::int64_t count, double* to) noexcept;
  void (*widen_bf16)(const std::uint16_t* from, std::int64_t count, double* to) noexcept;
  void (*widen_f16)(const std::uint16_t* from, std::int64_t count, double* to) noexcept;
};

extern const DistanceKernels distance_scalar;
#if defined(__x86_64__)
extern const DistanceKernels distance_avx2;
extern const DistanceKernels distance_avx512;
#endif

}  // namespace stun_ext::detail
