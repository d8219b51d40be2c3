// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/gram.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Fast, approximate inner products with a proven error: a filter that rejects pairs of rows which are certainly apart.
/// What it lets through is decided by exact distances, so that nothing depends on its precision.

/// A common origin and scale for all rows: distances do not depend on them, but rounding does.
struct GramFrame {
  std::vector<double> center;  ///< [d], about the mean of the rows
  double radius = 0.0;         ///< no row is farther from the centre; +Inf beyond float64
  double scale = 1.0;          ///< a power of two that brings the centred rows near 1

  /// From all rows (or, where there are many, from an evenly spaced sample of them).
  static GramFrame of(const ConstMatrixView& rows, Executor& executor);
};

/// The fastest for the processor, the instruction set in use and rows of so many columns. Asks the system for tiles
/// when they come up first.
const GramKernels& gram_kernels(std::int64_t cols);

/// Some rows, centred, scaled, rounded and packed for the product. Which side a panel may be on is fixed.
class GramPanel {
 public:
  enum class Side { a, b };

  /// @param kernels  the same for all panels that are multiplied with each other.
  GramPanel(Side side, std::int64_t max_rows, std::int64_t cols, const GramKernels& kernels);
  static double bytes(std::int64_t max_rows, std::int64_t cols) noexcept;

  /// Rows index[0 … count) of `rows`.
  void pack(const ConstMatrixView& rows, const std::uint32_t* index, std::int64_t count, const GramFrame& frame);

  std::int64_t count() const noexcept { return count_; }
  std::int64_t group_rows() const noexcept;                 ///< rows that are multiplied together
  double gamma() const noexcept;                            ///< see gram()
  std::int64_t blocks() const noexcept { return blocks_; }  ///< of kGramDepth columns, the last one maybe of less

  // Of the r-th row packed, in the frame's scale; x is the centred, scaled row and x̂ what was packed of it.
  double squared_norm(std::int64_t r) const noexcept { return squared_norm_[static_cast<std::size_t>(r)]; }  ///< ‖x‖²
  /// Of its first blocks of columns alone.
  double squared_norm(std::int64_t r, std::int64_t blocks) const noexcept {
    return prefix_[static_cast<std::size_t>(r * blocks_ + blocks - 1)];
  }
  double norm(std::int64_t r) const noexcept { return norm_[static_cast<std::size_t>(r)]; }    ///< at least ‖x‖ and ‖x̂‖
  double error(std::int64_t r) const noexcept { return error_[static_cast<std::size_t>(r)]; }  ///< at least ‖x − x̂‖

 private:
  friend void gram(const GramPanel& a, const GramPanel& b, std::int64_t first_block, std::int64_t last_block,
                   const unsigned char* wanted, float* out, std::int64_t stride);
  std::int64_t count_ = 0;
  std::vector<double> squared_norm_, norm_, error_;
  std::vector<double> prefix_;  ///< [rows, blocks]
  Side side_;
  std::int64_t cols_;
  std::int64_t blocks_;
  const GramKernels* kernels_;
  std::vector<float> packed_;  ///< blocks of kGramDepth columns, groups of rows in each, as the kernels have it
};

/// Rows of a group are at most so many more than asked for.
constexpr std::int64_t kGramPadding = 32;

/// Writes whole groups of rows: `out` has room for max_rows, plus kGramPadding, in both directions.
///
/// out[i · stride + j] = float32 approximation of x_i · y_j, for every row i of `a` and j of `b`:
///   |out − x_i·y_j| <= a.error(i)·b.norm(j) + a.norm(i)·b.error(j) + a.gamma()·a.norm(i)·b.norm(j) + 1e-30
/// (Cauchy–Schwarz on the rounding of the rows, and the usual bound on float32 accumulation, which gamma() proves).
/// Thread-safe; one thread's work.
void gram(const GramPanel& a, const GramPanel& b, float* out, std::int64_t stride);

/// The same over some blocks of columns, first included and last not: added to `out`, but for the first block of all.
/// The error bound holds for the sums up to there, too.
/// @param wanted  [groups of a, groups of b] flags: groups of rows (of group_rows()) whose products are; nullptr: all.
void gram(const GramPanel& a, const GramPanel& b, std::int64_t first_block, std::int64_t last_block,
          const unsigned char* wanted, float* out, std::int64_t stride);

}  // namespace stun_ext::detail
