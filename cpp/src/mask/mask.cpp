// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/mask.hpp"

#include <atomic>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"
#include "load.hpp"
#include "mask/mask.hpp"
#include "mask/row_cuts.hpp"
#include "mask/scores.hpp"
#include "row_blocks.hpp"

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

/// Zeroes columns of a row; returns how many were not ±0 before.
template <class Bits>
std::int64_t zero_columns(Bits* row, const Span<const std::uint32_t>& columns) noexcept {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  std::int64_t zeroed = 0;
  for (const std::uint32_t c : columns) {
    zeroed += (row[c] & kMagnitude) != 0;
    row[c] = 0;
  }
  return zeroed;
}

/// Zeroes what the cut says in a row of contiguous weights; returns how many are ±0 afterwards.
std::int64_t prune_row(const detail::MaskKernels& kernels, DType dtype, const std::int16_t* uppers, std::int64_t cols,
                       const detail::RowCut& cut, void* row) noexcept {
  if (dtype == DType::f32) {
    auto* weights = static_cast<std::uint32_t*>(row);
    const std::int64_t zeros = kernels.prune_u32(uppers, cols, cut.limit, weights);
    return zeros + zero_columns(weights, cut.columns);
  }
  auto* weights = static_cast<std::uint16_t*>(row);
  const std::int64_t zeros = kernels.prune_u16(uppers, cols, cut.limit, weights);
  return zeros + zero_columns(weights, cut.columns);
}

}  // namespace

namespace detail {

void check_mask(const char* operation, const MaskView& mask, std::int64_t rows, std::int64_t cols) {
  if (mask.rows != rows || mask.cols != cols) {
    fail(operation, "mask must be [", rows, ", ", cols, "], got [", mask.rows, ", ", mask.cols, "]");
  }
  if (rows == 0 || cols == 0) return;
  if (mask.data == nullptr) fail(operation, "mask must not be null");
  if (rows > 1 && magnitude(mask.row_stride) < cols) {
    fail(operation, "mask rows must not overlap, got row stride ", mask.row_stride, " for ", cols, " columns");
  }
}

std::int64_t apply_row(const MaskKernels& kernels, DType dtype, const std::uint8_t* mask, std::int64_t cols,
                       void* row) noexcept {
  return dtype == DType::f32 ? kernels.apply_u32(mask, cols, static_cast<std::uint32_t*>(row))
                             : kernels.apply_u16(mask, cols, static_cast<std::uint16_t*>(row));
}

}  // namespace detail

std::int64_t pruned_per_row(std::int64_t cols, double sparsity) {
  constexpr const char* kOperation = "pruned_per_row";
  if (cols < 0) detail::fail(kOperation, "cols must not be negative, got ", cols);
  if (!(sparsity >= 0.0 && sparsity < 1.0)) detail::fail(kOperation, "sparsity must be in [0, 1), got ", sparsity);
  return static_cast<std::int64_t>(static_cast<double>(cols) * sparsity);
}

void wanda_mask(ConstMatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "wanda_mask";
  detail::check_mask(kOperation, mask, weight.rows, weight.cols);
  check_counts(kOperation, weight, prune_counts);
  const detail::AlignedVector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  const detail::Scoring scoring = detail::Scoring::of(weight, norm, kernels);
  std::atomic<bool> is_finite{true};
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(weight);
    detail::RowCuts cuts(scoring, weight.cols);
    rows.for_each_block(begin, end, [&](std::int64_t row, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        if (!cuts.load(rows.row(r))) return is_finite.store(false, std::memory_order_relaxed);
        const detail::RowCut cut = cuts.find(prune_counts[static_cast<std::size_t>(row + r)]);
        std::uint8_t* to = mask.data + (row + r) * mask.row_stride;
        kernels.write_mask(cuts.uppers(), weight.cols, cut.limit, to);
        for (const std::uint32_t c : cut.columns) to[c] = 0;
      }
    });
  };
  executor.parallel_for(detail::rows_to_visit(weight), detail::block_rows_per_task(weight, executor), task);
  if (!is_finite.load()) detail::check_finite(kOperation, "weight", weight, executor);  // says where
}

std::int64_t wanda_prune(MatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                         Executor& executor) {
  constexpr const char* kOperation = "wanda_prune";
  detail::check_writable_view(kOperation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  check_counts(kOperation, weight, prune_counts);
  const detail::AlignedVector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm);
  detail::check_finite(kOperation, "weight", weight, executor);  // all of it before anything is written
  std::atomic<std::int64_t> total_zeros{0};
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  const detail::Scoring scoring = detail::Scoring::of(weight, norm, kernels);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(weight);
    detail::RowCuts cuts(scoring, weight.cols);
    std::int64_t zeros = 0;
    rows.for_each_block(begin, end, [&](std::int64_t row, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        cuts.load(rows.row(r));
        const detail::RowCut cut = cuts.find(prune_counts[static_cast<std::size_t>(row + r)]);
        zeros += prune_row(kernels, weight.dtype, cuts.uppers(), weight.cols, cut, rows.row_of(weight, r));
      }
      rows.store(weight);
    });
    total_zeros.fetch_add(zeros, std::memory_order_relaxed);
  };
  executor.parallel_for(detail::rows_to_visit(weight), detail::block_rows_per_task(weight, executor), task);
  return total_zeros.load();
}

void apply_mask(MatrixView weight, MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "apply_mask";
  detail::check_writable_view(kOperation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  detail::check_mask(kOperation, mask, weight.rows, weight.cols);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(weight);
    rows.for_each_block(begin, end, [&](std::int64_t row, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        detail::apply_row(kernels, weight.dtype, mask.data + (row + r) * mask.row_stride, weight.cols,
                          rows.row_of(weight, r));
      }
      rows.store(weight);
    });
  };
  executor.parallel_for(detail::rows_to_visit(weight), detail::block_rows_per_task(weight, executor), task);
}

}  // namespace stun_ext
