// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/mask.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"
#include "kernels/mask.hpp"
#include "load.hpp"
#include "scores.hpp"

namespace stun_ext {
namespace {

void check_counts(const char* operation, const ConstMatrixView& weight, const Span<const std::int64_t>& prune_counts) {
  if (static_cast<std::int64_t>(prune_counts.size()) != weight.rows) {
    detail::fail(operation, "prune_counts must hold one value for each of the ", weight.rows, " rows, got ",
                 prune_counts.size());
  }
  for (std::size_t row = 0; row < prune_counts.size(); ++row) {
    if (prune_counts[row] < 0 || prune_counts[row] > weight.cols) {
      detail::fail(operation, "prune_counts must be in [0, ", weight.cols, "], got ", prune_counts[row], " for row ",
                   row);
    }
  }
}

void check_mask(const char* operation, const MaskView& mask, std::int64_t rows, std::int64_t cols) {
  if (mask.rows != rows || mask.cols != cols) {
    detail::fail(operation, "mask must be [", rows, ", ", cols, "], got [", mask.rows, ", ", mask.cols, "]");
  }
  if (rows == 0 || cols == 0) return;
  if (mask.data == nullptr) detail::fail(operation, "mask must not be null");
  if (rows > 1 && detail::magnitude(mask.row_stride) < cols) {
    detail::fail(operation, "mask rows must not overlap, got row stride ", mask.row_stride, " for ", cols, " columns");
  }
}

constexpr std::int64_t kBlockRows = 32;  // of a transposed matrix: one cache line of a column of 2-byte elements

/// Scores and cuts of the rows of one task.
class RowCuts {
 public:
  RowCuts(const ConstMatrixView& weight, const std::vector<float>& norm, const Span<const std::int64_t>& prune_counts,
          const detail::MaskKernels& kernels)
      : kernels_(kernels),
        scores_(weight, norm, kernels),
        cols_(weight.cols),
        prune_counts_(prune_counts),
        histogram_(detail::kCutHistograms * detail::kCutBuckets),
        candidates_(static_cast<std::size_t>(weight.cols)),
        cuts_(static_cast<std::size_t>(scores_.block_rows())) {}

  /// Calls `function(first_row, rows)` for blocks of rows that cover [begin, end).
  template <class Function>
  void for_each_block(std::int64_t begin, std::int64_t end, Function&& function) {
    for (std::int64_t row = begin; row < end; row += scores_.block_rows()) {
      const std::int64_t rows = std::min(scores_.block_rows(), end - row);
      scores_.load(row, rows);
      for (std::int64_t r = 0; r < rows; ++r) cuts_[static_cast<std::size_t>(r)] = find(row + r, keys(r));
      function(row, rows);
    }
  }

  /// Of the r-th row of the block.
  const std::int32_t* keys(std::int64_t r) const noexcept { return scores_.keys(r); }
  detail::Cut cut(std::int64_t r) const noexcept { return cuts_[static_cast<std::size_t>(r)]; }

 private:
  detail::Cut find(std::int64_t row, const std::int32_t* keys) noexcept {
    const std::int64_t pruned = prune_counts_[static_cast<std::size_t>(row)];
    if (pruned == 0) return {-1, cols_};  // keys are not negative: nothing is below or equal
    return kernels_.find_cut(keys, cols_, pruned, {histogram_.data(), candidates_.data()});
  }

  const detail::MaskKernels& kernels_;
  detail::ScoreRows scores_;
  std::int64_t cols_;
  Span<const std::int64_t> prune_counts_;
  std::vector<std::uint32_t> histogram_;
  std::vector<std::int32_t> candidates_;
  std::vector<detail::Cut> cuts_;
};

/// Zeroes elements of rows [row, row + rows) by is_pruned(r, c), r from 0; returns how many are ±0 afterwards.
/// Column by column where the columns are what lies together.
template <class Bits, class IsPruned>
std::int64_t prune_block(const MatrixView& weight, std::int64_t row, std::int64_t rows, IsPruned&& is_pruned) noexcept {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  Bits* block = static_cast<Bits*>(weight.data) + row * weight.row_stride;
  std::int64_t zeros = 0;
  auto visit = [&](std::int64_t r, std::int64_t c) {
    Bits& element = block[r * weight.row_stride + c * weight.col_stride];
    const Bits value = is_pruned(r, c) ? Bits{0} : element;
    element = value;
    zeros += (value & kMagnitude) == 0;
  };
  if (detail::is_column_major(weight)) {
    for (std::int64_t c = 0; c < weight.cols; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) visit(r, c);
    }
  } else {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < weight.cols; ++c) visit(r, c);
    }
  }
  return zeros;
}

/// A row of contiguous weights: the loop that vectorises.
template <class Bits>
void apply_row(Bits* row, const std::uint8_t* keep, std::int64_t cols) noexcept {
  for (std::int64_t c = 0; c < cols; ++c) row[c] = keep[c] != 0 ? row[c] : Bits{0};
}

template <class Bits>
void apply_rows(const MatrixView& weight, const MaskView& mask, std::int64_t begin, std::int64_t end) noexcept {
  if (weight.col_stride == 1) {
    for (std::int64_t row = begin; row < end; ++row) {
      apply_row(static_cast<Bits*>(weight.data) + row * weight.row_stride, mask.data + row * mask.row_stride,
                weight.cols);
    }
    return;
  }
  for (std::int64_t row = begin; row < end; row += kBlockRows) {
    const std::uint8_t* keep = mask.data + row * mask.row_stride;
    prune_block<Bits>(weight, row, std::min(kBlockRows, end - row),
                      [&](std::int64_t r, std::int64_t c) { return keep[r * mask.row_stride + c] == 0; });
  }
}

/// Rows for one task, whole blocks of them.
std::int64_t block_rows_per_task(const ConstMatrixView& matrix, const Executor& executor) noexcept {
  return (detail::rows_per_workspace(matrix.rows, matrix.cols, executor) + kBlockRows - 1) / kBlockRows * kBlockRows;
}

}  // namespace

std::int64_t pruned_per_row(std::int64_t cols, double sparsity) {
  constexpr const char* kOperation = "pruned_per_row";
  if (cols < 0) detail::fail(kOperation, "cols must not be negative, got ", cols);
  if (!(sparsity >= 0.0 && sparsity < 1.0)) detail::fail(kOperation, "sparsity must be in [0, 1), got ", sparsity);
  return static_cast<std::int64_t>(static_cast<double>(cols) * sparsity);
}

void wanda_mask(ConstMatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "wanda_mask";
  check_mask(kOperation, mask, weight.rows, weight.cols);
  check_counts(kOperation, weight, prune_counts);
  const std::vector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm, executor);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    RowCuts cuts(weight, norm, prune_counts, kernels);
    cuts.for_each_block(begin, end, [&](std::int64_t row, std::int64_t rows) {
      for (std::int64_t r = 0; r < rows; ++r) {
        kernels.write_mask(cuts.keys(r), weight.cols, cuts.cut(r), mask.data + (row + r) * mask.row_stride);
      }
    });
  };
  executor.parallel_for(weight.rows, detail::score_rows_per_task(weight, executor), task);
}

std::int64_t wanda_prune(MatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                         Executor& executor) {
  constexpr const char* kOperation = "wanda_prune";
  detail::check_writable_view(kOperation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  check_counts(kOperation, weight, prune_counts);
  const std::vector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm, executor);
  const bool is_wide = weight.dtype == DType::f32;
  std::atomic<std::int64_t> total_zeros{0};
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    RowCuts cuts(weight, norm, prune_counts, kernels);
    std::int64_t zeros = 0;
    cuts.for_each_block(begin, end, [&](std::int64_t row, std::int64_t rows) {
      const std::int64_t offset = row * weight.row_stride;
      auto is_pruned = [&](std::int64_t r, std::int64_t c) {
        const detail::Cut cut = cuts.cut(r);
        return cuts.keys(r)[c] < cut.key + (c < cut.tie_end ? 1 : 0);  // <= the cut before tie_end, < it after
      };
      if (weight.col_stride != 1) {
        zeros += is_wide ? prune_block<std::uint32_t>(weight, row, rows, is_pruned)
                         : prune_block<std::uint16_t>(weight, row, rows, is_pruned);
      } else if (is_wide) {  // blocks of one row
        zeros += kernels.prune_u32(cuts.keys(0), weight.cols, cuts.cut(0),
                                   static_cast<std::uint32_t*>(weight.data) + offset);
      } else {
        zeros += kernels.prune_u16(cuts.keys(0), weight.cols, cuts.cut(0),
                                   static_cast<std::uint16_t*>(weight.data) + offset);
      }
    });
    total_zeros.fetch_add(zeros, std::memory_order_relaxed);
  };
  executor.parallel_for(weight.rows, detail::score_rows_per_task(weight, executor), task);
  return total_zeros.load();
}

void nm_mask(ConstMatrixView scores, std::int64_t n, std::int64_t m, MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "nm_mask";
  if (m < 2) detail::fail(kOperation, "m must be at least 2, got ", m);
  if (n < 1 || n >= m) detail::fail(kOperation, "n must be in [1, ", m - 1, "], got ", n);
  detail::check_view(kOperation, "scores", scores, {DType::f32, DType::f16, DType::bf16});
  if (scores.cols % m != 0) {
    detail::fail(kOperation, "scores must have a multiple of m = ", m, " columns, got ", scores.cols);
  }
  check_mask(kOperation, mask, scores.rows, scores.cols);
  detail::check_not_nan(kOperation, "scores", scores, executor);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> block(static_cast<std::size_t>(kBlockRows * scores.cols));
    std::vector<std::int64_t> order(static_cast<std::size_t>(m));
    for (std::int64_t row = begin; row < end; row += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, end - row);
      detail::load_block(scores, row, rows, 0, scores.cols, block.data(), scores.cols);
      for (std::int64_t r = 0; r < rows; ++r) {
        std::uint8_t* to = mask.data + (row + r) * mask.row_stride;
        for (std::int64_t c = 0; c < scores.cols; c += m) {
          kernels.keep_highest(block.data() + r * scores.cols + c, n, m, to + c, order.data());
        }
      }
    }
  };
  executor.parallel_for(scores.rows, block_rows_per_task(scores, executor), task);
}

void apply_mask(MatrixView weight, MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "apply_mask";
  detail::check_writable_view(kOperation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  check_mask(kOperation, mask, weight.rows, weight.cols);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    if (weight.dtype == DType::f32) {
      apply_rows<std::uint32_t>(weight, mask, begin, end);
    } else {
      apply_rows<std::uint16_t>(weight, mask, begin, end);
    }
  };
  executor.parallel_for(weight.rows, block_rows_per_task(weight, executor), task);
}

}  // namespace stun_ext
