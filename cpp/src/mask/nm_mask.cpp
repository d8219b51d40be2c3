// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"
#include "kernels/nm.hpp"
#include "mask/mask.hpp"
#include "mask/scores.hpp"
#include "row_blocks.hpp"

namespace stun_ext {
namespace {

constexpr std::int64_t kChunk = 2048;  // columns whose scores and mask stay in the first cache

void check_pattern(const char* operation, const char* name, std::int64_t cols, std::int64_t n, std::int64_t m) {
  if (m < 2) detail::fail(operation, "m must be at least 2, got ", m);
  if (n < 1 || n >= m) detail::fail(operation, "n must be in [1, ", m - 1, "], got ", n);
  if (cols % m != 0) detail::fail(operation, name, " must have a multiple of m = ", m, " columns, got ", cols);
}

/// The bits of infinity: what is above them is NaN.
std::uint32_t infinity(DType dtype) noexcept {
  return dtype == DType::f32 ? 0x7f800000u : dtype == DType::f16 ? 0x7c00u : 0x7f80u;
}

}  // namespace

void nm_mask(ConstMatrixView scores, std::int64_t n, std::int64_t m, MaskView mask, Executor& executor) {
  constexpr const char* kOperation = "nm_mask";
  check_pattern(kOperation, "scores", scores.cols, n, m);
  detail::check_view(kOperation, "scores", scores, {DType::f32, DType::f16, DType::bf16});
  detail::check_mask(kOperation, mask, scores.rows, scores.cols);
  const detail::NmKernels& kernels = STUN_EXT_KERNELS(nm);
  const detail::NmPattern pattern = {n, m};
  const std::uint32_t limit = infinity(scores.dtype);
  std::atomic<bool> has_nan{false};
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(scores);
    std::vector<std::int64_t> order(static_cast<std::size_t>(m));
    bool found = false;
    rows.for_each_block(begin, end, [&](std::int64_t row, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        std::uint8_t* to = mask.data + (row + r) * mask.row_stride;
        if (scores.dtype == DType::f32) {
          found |= kernels.keep_highest_u32(static_cast<const std::uint32_t*>(rows.row(r)), scores.cols, pattern, limit,
                                            to, order.data());
        } else {
          found |= kernels.keep_highest_u16(static_cast<const std::uint16_t*>(rows.row(r)), scores.cols, pattern,
                                            static_cast<std::uint16_t>(limit), to, order.data());
        }
      }
    });
    if (found) has_nan.store(true, std::memory_order_relaxed);
  };
  executor.parallel_for(detail::rows_to_visit(scores), detail::block_rows_per_task(scores, executor), task);
  if (has_nan.load()) detail::check_not_nan(kOperation, "scores", scores, executor);  // says where
}

std::int64_t nm_prune(MatrixView weight, Span<const float> input_sq_norm, std::int64_t n, std::int64_t m,
                      Executor& executor) {
  constexpr const char* kOperation = "nm_prune";
  detail::check_writable_view(kOperation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  check_pattern(kOperation, "weight", weight.cols, n, m);
  const detail::AlignedVector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm);
  detail::check_finite(kOperation, "weight", weight, executor);  // all of it before anything is written
  std::atomic<std::int64_t> total_zeros{0};
  const detail::MaskKernels& mask_kernels = STUN_EXT_KERNELS(mask);
  const detail::NmKernels& kernels = STUN_EXT_KERNELS(nm);
  constexpr std::uint32_t kNoLimit = 0x7fffffffu;  // W is finite: its scores are no NaN
  const std::int64_t chunk = std::min(std::max(kChunk / m, std::int64_t{1}) * m, weight.cols);  // whole blocks
  const auto size = static_cast<std::int64_t>(size_of(weight.dtype));
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(weight);
    detail::AlignedVector<std::int32_t> keys(static_cast<std::size_t>(chunk));
    detail::AlignedVector<std::uint8_t> mask(static_cast<std::size_t>(chunk));
    std::vector<std::int64_t> order(static_cast<std::size_t>(m));
    std::int64_t zeros = 0;
    rows.for_each_block(begin, end, [&](std::int64_t, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t c = 0; c < weight.cols; c += chunk) {
          const std::int64_t cols = std::min(chunk, weight.cols - c);
          auto* at = static_cast<unsigned char*>(rows.row_of(weight, r)) + c * size;
          const detail::Scoring scoring{weight.dtype, norm.empty() ? nullptr : norm.data() + c, &mask_kernels};
          scoring.keys(at, cols, keys.data());
          // Scores are not negative, so their keys are their bits.
          kernels.keep_highest_u32(reinterpret_cast<const std::uint32_t*>(keys.data()), cols, {n, m}, kNoLimit,
                                   mask.data(), order.data());
          zeros += detail::apply_row(mask_kernels, weight.dtype, mask.data(), cols, at);
        }
      }
      rows.store(weight);
    });
    total_zeros.fetch_add(zeros, std::memory_order_relaxed);
  };
  executor.parallel_for(detail::rows_to_visit(weight), detail::block_rows_per_task(weight, executor), task);
  return total_zeros.load();
}

}  // namespace stun_ext
