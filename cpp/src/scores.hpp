// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/mask.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Checks the arguments of a Wanda operation, W finite among them, and returns sqrt(input_sq_norm).
std::vector<float> check_wanda(const char* operation, const ConstMatrixView& weight,
                               const Span<const float>& input_sq_norm, Executor& executor);

/// Score bits (see kernels/mask.hpp) of a few rows at a time. A row-major matrix is read row by row; a transposed one
/// in blocks of rows, so that every cache line that is fetched is used whole.
class ScoreRows {
 public:
  ScoreRows(const ConstMatrixView& weight, const std::vector<float>& norm, const MaskKernels& kernels);

  /// Rows that one call to load takes.
  std::int64_t block_rows() const noexcept { return block_rows_; }

  /// Computes the scores of rows [row, row + count), count at most block_rows().
  void load(std::int64_t row, std::int64_t count) noexcept;

  /// Scores of the r-th row loaded.
  const std::int32_t* keys(std::int64_t r) const noexcept { return keys_.data() + r * stride_; }

 private:
  const MaskKernels& kernels_;
  ConstMatrixView weight_;
  const float* norm_;  ///< null for magnitude
  std::int64_t block_rows_;
  std::int64_t stride_;  ///< between rows of keys: not a power of two, or a column of them would share one cache set
  std::vector<std::int32_t> keys_;
  std::vector<float> values_;
};

/// Rows for one task: a whole number of blocks.
std::int64_t score_rows_per_task(const ConstMatrixView& weight, const Executor& executor) noexcept;

}  // namespace stun_ext::detail
