// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/saliency.hpp"

#include <algorithm>
#include <cmath>

#include "check.hpp"
#include "dispatch.hpp"
#include "load.hpp"
#include "scores.hpp"

namespace stun_ext {
namespace detail {
namespace {

constexpr std::int64_t kTransposedRows = 32;  // of 2 bytes each: one cache line of a column

}  // namespace

std::vector<float> check_wanda(const char* operation, const ConstMatrixView& weight,
                               const Span<const float>& input_sq_norm, Executor& executor) {
  check_view(operation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  if (!input_sq_norm.empty() && static_cast<std::int64_t>(input_sq_norm.size()) != weight.cols) {
    fail(operation, "input_sq_norm must hold one value for each of the ", weight.cols, " columns, got ",
         input_sq_norm.size());
  }
  std::vector<float> norm(input_sq_norm.size());
  for (std::size_t c = 0; c < norm.size(); ++c) {
    const float value = input_sq_norm[c];
    if (!(std::isfinite(value) && value >= 0.0f)) {
      fail(operation, "input_sq_norm must be finite and not negative, got ", value, " for feature ", c);
    }
    norm[c] = std::sqrt(value);
  }
  check_finite(operation, "weight", weight, executor);
  return norm;
}

ScoreRows::ScoreRows(const ConstMatrixView& weight, const std::vector<float>& norm, const MaskKernels& kernels)
    : kernels_(kernels),
      weight_(weight),
      norm_(norm.empty() ? nullptr : norm.data()),
      block_rows_(weight.col_stride == 1 ? 1 : std::min(kTransposedRows, std::max<std::int64_t>(weight.rows, 1))),
      stride_(weight.cols + 16),
      keys_(static_cast<std::size_t>(block_rows_ * stride_)) {
  if (weight.col_stride != 1) values_.resize(keys_.size());
}

void ScoreRows::load(std::int64_t row, std::int64_t count) noexcept {
  if (weight_.col_stride != 1) {
    load_block(weight_, row, count, 0, weight_.cols, values_.data(), stride_);
    for (std::int64_t r = 0; r < count; ++r) {
      kernels_.scores_f32(values_.data() + r * stride_, norm_, weight_.cols, keys_.data() + r * stride_);
    }
    return;
  }
  const std::int64_t offset = row * weight_.row_stride;
  if (weight_.dtype == DType::f32) {
    kernels_.scores_f32(static_cast<const float*>(weight_.data) + offset, norm_, weight_.cols, keys_.data());
  } else if (weight_.dtype == DType::f16) {
    kernels_.scores_f16(static_cast<const std::uint16_t*>(weight_.data) + offset, norm_, weight_.cols, keys_.data());
  } else {
    kernels_.scores_bf16(static_cast<const std::uint16_t*>(weight_.data) + offset, norm_, weight_.cols, keys_.data());
  }
}

std::int64_t score_rows_per_task(const ConstMatrixView& weight, const Executor& executor) noexcept {
  const std::int64_t block = weight.col_stride == 1 ? 1 : kTransposedRows;
  return (rows_per_workspace(weight.rows, weight.cols, executor) + block - 1) / block * block;
}

}  // namespace detail

void wanda_scores(ConstMatrixView weight, Span<const float> input_sq_norm, MatrixView out, Executor& executor) {
  constexpr const char* kOperation = "wanda_scores";
  if (out.rows != weight.rows || out.cols != weight.cols) {
    detail::fail(kOperation, "out must be [", weight.rows, ", ", weight.cols, "], got [", out.rows, ", ", out.cols,
                 "]");
  }
  detail::check_writable_view(kOperation, "out", out, {DType::f32});
  const std::vector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm, executor);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::ScoreRows scores(weight, norm, kernels);
    for (std::int64_t row = begin; row < end; row += scores.block_rows()) {
      const std::int64_t count = std::min(scores.block_rows(), end - row);
      scores.load(row, count);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int32_t* keys = scores.keys(r);
        float* to = static_cast<float*>(out.data) + (row + r) * out.row_stride;
        for (std::int64_t c = 0; c < weight.cols; ++c) {
          to[c * out.col_stride] = detail::float_from_bits(static_cast<std::uint32_t>(keys[c]));
        }
      }
    }
  };
  executor.parallel_for(weight.rows, detail::score_rows_per_task(weight, executor), task);
}

}  // namespace stun_ext
