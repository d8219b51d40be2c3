// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "aligned.hpp"
#include "kernels/distance.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// The kernels of the instruction set in use.
const DistanceKernels& distance_kernels();

/// d² of two rows of `cols` columns is ‖x‖² + ‖y‖² − 2 x·y where that has lost few digits, and Σ(x − y)² elsewhere;
/// which of the two depends on the three sums alone, and these on the two rows alone. So the matrix of distances, a
/// block of it and a single pair agree to the bit.
///
/// The error. Let u = 2^-53, X = ‖x‖², Y = ‖y‖². A term of a sum (kernels/distance.hpp) is rounded at most
/// m = kBlockDepth + kLanes + ⌈d / kBlockCols⌉ times: by its chain, among the chains of a block, among the blocks. So
/// with γ = m u / (1 − m u) the computed x·y is off by at most γ Σ|x_c y_c| <= γ (X + Y)/2, and ‖x‖², ‖y‖² by γ X and
/// γ Y. With the roundings of s = ‖x‖² + ‖y‖² and of s − 2 x·y (doubling is exact), the result is off by at most
/// (2γ + u)(X + Y)(1 + γ) and u of itself. It is used if it is at least s/16 >= (X + Y)(1 − γ)(1 − u)/16; so its
/// relative error is at most 16 (2γ + u) + u and a little, and that of the distance, half of it and u, at most
/// 16 (m + 2) u with all terms of second order while m u < 2^-20: 2.6e-13 for 7,168 columns, 1e-12 up to 400,000.
/// Σ(x − y)² loses nothing to cancellation: 2 u for each term and m u for the sum, half of that for the distance.
/// Equal rows have distance 0, as s = 2 x·y to the bit; where all terms and sums are whole numbers below 2^53, both
/// forms are exact.
///
/// Terms below the smallest normal number round by an absolute 2^-1075: nothing beside s >= kLeast. Beyond kMost
/// nothing has overflowed yet. Rows of few columns are not worth the first form.
struct SquaredDistanceRule {
  static constexpr double kShare = 1.0 / 16.0;
  static constexpr double kLeast = 0x1p-900, kMost = 0x1p1000;
  static constexpr std::int64_t kProductCols = 64;  ///< from so many columns on
  static constexpr double kByDifferences = -1.0;

  /// d² from ‖x‖², ‖y‖² and x·y, or kByDifferences.
  static double from_products(double xx, double yy, double xy) noexcept {
    const double sum = xx + yy;
    const double squared = sum - 2.0 * xy;
    const bool keeps = squared >= kShare * sum;
    const bool in_range = sum >= kLeast && sum <= kMost;
    return keeps && in_range ? squared : kByDifferences;
  }
};

/// Rows of a view as the kernels take them: where they lie if that is possible, else copied as float64.
class RowSource {
 public:
  RowSource(const DistanceKernels& kernels, const ConstMatrixView& rows) noexcept;

  const DistanceKernels& all_kernels() const noexcept { return all_kernels_; }
  /// For what `block` returns.
  const RowKernels& kernels() const noexcept { return *kernels_; }
  const ConstMatrixView& rows() const noexcept { return rows_; }
  bool in_place() const noexcept { return in_place_; }

  /// Up to kBlockCols columns of a row.
  /// @param buffer  for as many values.
  const void* block(std::int64_t row, std::int64_t col, std::int64_t cols, double* buffer) const noexcept;

 private:
  const DistanceKernels& all_kernels_;
  const ConstMatrixView& rows_;
  const RowKernels* kernels_;
  bool in_place_;
};

/// What is summed over the columns of two rows.
enum class Term { product, difference };

/// Groups of rows of a panel.
struct GroupRange {
  std::int64_t begin, end;
};

/// Rows packed in float64: by blocks of columns, by lanes, by groups of rows.
class DistancePanel {
 public:
  DistancePanel() = default;

  /// For `count` rows of a source by its columns col … col + cols − 1; `col` is a multiple of kBlockCols.
  /// @param memory  of the caller, on a cache line, `size` values.
  DistancePanel(const RowSource& source, std::int64_t count, std::int64_t col, std::int64_t cols,
                double* memory) noexcept;

  static std::int64_t size(const DistanceKernels& kernels, std::int64_t count, std::int64_t cols) noexcept;

  GroupRange groups() const noexcept { return {0, groups_}; }
  std::int64_t blocks() const noexcept { return blocks_; }

  /// Fills one group, from several threads. The panel's rows are index[0], index[1], … of the source, or without an
  /// index first, first + 1, …
  void pack(const RowSource& source, std::int64_t first, const std::uint32_t* index, std::int64_t group) noexcept;

  /// All groups.
  void pack(const RowSource& source, std::int64_t first, const std::uint32_t* index) noexcept {
    for (std::int64_t group = 0; group < groups_; ++group) pack(source, first, index, group);
  }

  /// Writes a block's sums to out[i · stride + j] for the rows i of some groups of a and j of b; if `is_upper` (they
  /// are the same rows) not for groups of a behind those of b, where nothing is written. The last group is filled up
  /// with rows of zeros.
  static void sum_block(Term term, std::int64_t block, const DistancePanel& a, GroupRange groups_a,
                        const DistancePanel& b, GroupRange groups_b, bool is_upper, double* out,
                        std::int64_t stride) noexcept;

 private:
  std::int64_t depth(std::int64_t block) const noexcept;
  double* part(std::int64_t block, std::int64_t lane) const noexcept {
    return memory_ + (block * kLanes + lane) * lane_stride_;
  }

  const DistanceKernels* kernels_ = nullptr;
  bool has_exact_products_ = false;
  std::int64_t rows_ = 0, groups_ = 0, col_ = 0, cols_ = 0, blocks_ = 0;
  std::int64_t lane_stride_ = 0;
  double* memory_ = nullptr;
};

}  // namespace stun_ext::detail
