// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// The one order in which anything is summed over the columns of rows, be it x·y, x·x or (x − y)²: blocks of
/// kBlockCols columns (the last may be shorter); in a block kLanes chains of fused multiply-adds in float64, each from
/// zero, chain l over the columns l, l + kLanes, … of the block in ascending order; the chains of a block are added one
/// to the other, then the block to the sum. Every instruction set and every kernel follows it, so all give the same
/// bits: one with a register of lanes for a pair of rows, which suits rows where they lie, as well as one with a chain
/// for each of many pairs, which suits packed ones. Zeros behind the last column change nothing.
constexpr std::int64_t kLanes = 8;
constexpr std::int64_t kBlockDepth = 128;  ///< terms of a chain
constexpr std::int64_t kBlockCols = kLanes * kBlockDepth;

/// Rows that one call of `products` or `differences` takes at most.
constexpr std::int64_t kManyRows = 4;

/// Kernels for contiguous rows of one element type, up to kBlockCols columns of one block.
struct RowKernels {
  /// Adds x·x, y·y, x·y and (x − y)² to sums[0 … 3]: for a single pair it is the time of a chain that counts, and four
  /// take no longer than one.
  void (*pair)(const void* x, const void* y, std::int64_t cols, double* sums) noexcept;

  /// Adds x·x to sums[0], and for each row y_j of `count` <= kManyRows x·y_j to sums[1 + 2j] and y_j·y_j to
  /// sums[2 + 2j].
  void (*products)(const void* x, const void* const* y, std::int64_t count, std::int64_t cols, double* sums) noexcept;

  /// Adds x·y_j to sums[j] for `count` <= kManyRows rows.
  using Sums = void(const void* x, const void* const* y, std::int64_t count, std::int64_t cols, double* sums) noexcept;
  Sums* dots;
  Sums* differences;  ///< (x − y_j)²

  /// Packs `count` <= group rows for the kernels of DistanceKernels: column c of row r to to[c % kLanes · lane_stride +
  /// c / kLanes · group + r], with zeros for missing rows and up to whole lanes of columns.
  void (*pack)(const void* const* rows, std::int64_t count, std::int64_t cols, double* to,
               std::int64_t lane_stride) noexcept;
};

struct DistanceKernels {
  std::int64_t group;     ///< rows that are packed together; divides 24
  std::int64_t groups_b;  ///< groups of side b that one call of the kernels below takes at most

  /// Adds one chain to out[i · stride + j], or stores it if `is_first`, for each row i of group `a` with each row j of
  /// the `count` groups from `b` on, which follow each other. A group has depth · `group` elements.
  using Panels = void(const double* a, const double* b, std::int64_t count, std::int64_t depth, bool is_first,
                      double* out, std::int64_t stride) noexcept;
  Panels* products;
  Panels* exact_products;  ///< for elements whose products float64 holds exactly: float32 and shorter
  Panels* differences;     ///< (x − y)²

  RowKernels f32, bf16, f16, f64;
};

extern const DistanceKernels distance_scalar;
#if defined(__x86_64__)
extern const DistanceKernels distance_avx2;
extern const DistanceKernels distance_avx512;
#elif defined(__aarch64__)
inline constexpr const DistanceKernels& distance_neon = distance_scalar;  // which the compiler vectorises there
#endif

}  // namespace stun_ext::detail
