// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/saliency.hpp"

#include <algorithm>
#include <cmath>

#include "check.hpp"
#include "dispatch.hpp"
#include "load.hpp"
#include "mask/scores.hpp"
#include "row_blocks.hpp"

namespace stun_ext {
namespace detail {
AlignedVector<float> check_wanda(const char* operation, const ConstMatrixView& weight,
                                 const Span<const float>& input_sq_norm) {
  check_view(operation, "weight", weight, {DType::f32, DType::f16, DType::bf16});
  if (!input_sq_norm.empty() && static_cast<std::int64_t>(input_sq_norm.size()) != weight.cols) {
    fail(operation, "input_sq_norm must hold one value for each of the ", weight.cols, " columns, got ",
         input_sq_norm.size());
  }
  AlignedVector<float> norm(input_sq_norm.size());
  for (std::size_t c = 0; c < norm.size(); ++c) {
    const float value = input_sq_norm[c];
    if (!(std::isfinite(value) && value >= 0.0f)) {
      fail(operation, "input_sq_norm must be finite and not negative, got ", value, " for feature ", c);
    }
    norm[c] = std::abs(std::sqrt(value));  // of −0 it is −0, and a score's sign bit must be 0
  }
  return norm;
}

Scoring Scoring::of(const ConstMatrixView& weight, const AlignedVector<float>& norm,
                    const MaskKernels& kernels) noexcept {
  return {weight.dtype, norm.empty() ? nullptr : norm.data(), &kernels};
}

void Scoring::keys(const void* row, std::int64_t count, std::int32_t* out) const noexcept {
  if (dtype == DType::f32) {
    kernels->scores_f32(static_cast<const float*>(row), norm, count, out);
  } else if (dtype == DType::f16) {
    kernels->scores_f16(static_cast<const std::uint16_t*>(row), norm, count, out);
  } else {
    kernels->scores_bf16(static_cast<const std::uint16_t*>(row), norm, count, out);
  }
}

bool Scoring::uppers(const void* row, std::int64_t count, std::int16_t* out) const noexcept {
  if (dtype == DType::f32) return kernels->uppers_f32(static_cast<const float*>(row), norm, count, out);
  const auto* bits = static_cast<const std::uint16_t*>(row);
  return dtype == DType::f16 ? kernels->uppers_f16(bits, norm, count, out)
                             : kernels->uppers_bf16(bits, norm, count, out);
}

}  // namespace detail

void wanda_scores(ConstMatrixView weight, Span<const float> input_sq_norm, MatrixView out, Executor& executor) {
  constexpr const char* kOperation = "wanda_scores";
  if (out.rows != weight.rows || out.cols != weight.cols) {
    detail::fail(kOperation, "out must be [", weight.rows, ", ", weight.cols, "], got [", out.rows, ", ", out.cols,
                 "]");
  }
  detail::check_writable_view(kOperation, "out", out, {DType::f32});
  const detail::AlignedVector<float> norm = detail::check_wanda(kOperation, weight, input_sq_norm);
  detail::check_finite(kOperation, "weight", weight, executor);
  const detail::MaskKernels& kernels = STUN_EXT_KERNELS(mask);
  const detail::Scoring scoring = detail::Scoring::of(weight, norm, kernels);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    detail::RowBlocks rows(weight);
    detail::AlignedVector<std::int32_t> keys(static_cast<std::size_t>(weight.cols));
    rows.for_each_block(begin, end, [&](std::int64_t row, std::int64_t count) {
      for (std::int64_t r = 0; r < count; ++r) {
        scoring.keys(rows.row(r), weight.cols, keys.data());
        float* to = static_cast<float*>(out.data) + (row + r) * out.row_stride;
        for (std::int64_t c = 0; c < weight.cols; ++c) {
          to[c * out.col_stride] =
              detail::float_from_bits(static_cast<std::uint32_t>(keys[static_cast<std::size_t>(c)]));
        }
      }
    });
  };
  executor.parallel_for(detail::rows_to_visit(weight), detail::block_rows_per_task(weight, executor), task);
}

}  // namespace stun_ext
