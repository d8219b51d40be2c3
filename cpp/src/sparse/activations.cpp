// SPDX-License-Identifier: Apache-2.0
#include "sparse/activations.hpp"

#include <algorithm>

#include "check.hpp"
#include "kernels/matmul.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

std::int64_t padded(std::int64_t cols) noexcept { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }

/// As many tokens as make a task worth starting a thread for.
template <class Task>
void for_tokens(const ConstMatrixView& x, Executor& executor, std::int64_t multiple, Task&& task) {
  const std::int64_t tokens = 4 * rows_per_task(x.cols);
  executor.parallel_for(x.rows, (tokens + multiple - 1) / multiple * multiple, task);
}

template <class Bits>
void store_bits(const float* sums, std::int64_t stride, const MatrixView& y, std::int64_t first, std::int64_t rows,
                Bits (*round)(float) noexcept) noexcept {
  for (std::int64_t m = 0; m < y.rows; ++m) {
    Bits* to = static_cast<Bits*>(y.data) + m * y.row_stride + first * y.col_stride;
    for (std::int64_t r = 0; r < rows; ++r) to[r * y.col_stride] = round(sums[m * stride + r]);
  }
}

}  // namespace

AlignedVector<float> padded_floats(const ConstMatrixView& x, Executor& executor) {
  const std::int64_t stride = padded(x.cols);
  AlignedVector<float> out(static_cast<std::size_t>(x.rows * stride));
  auto task = [&](std::int64_t begin, std::int64_t end) {
    load_block(x, begin, end - begin, 0, x.cols, out.data() + begin * stride, stride);
  };
  for_tokens(x, executor, 1, task);
  return out;
}

AlignedVector<std::uint16_t> padded_bits(const ConstMatrixView& x, Executor& executor) {
  const std::int64_t stride = padded(x.cols);
  AlignedVector<std::uint16_t> out(static_cast<std::size_t>(x.rows * stride));
  auto task = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      const auto* from = static_cast<const std::uint16_t*>(x.data) + m * x.row_stride;
      for (std::int64_t c = 0; c < x.cols; ++c) out[static_cast<std::size_t>(m * stride + c)] = from[c * x.col_stride];
    }
  };
  for_tokens(x, executor, 1, task);
  return out;
}

AlignedVector<std::uint32_t> token_tiles(const ConstMatrixView& x, Executor& executor) {
  constexpr std::int64_t kTokens = 16;
  const std::int64_t tiles = (x.rows + kTokens - 1) / kTokens, pairs = padded(x.cols) / 2;
  AlignedVector<std::uint32_t> out(static_cast<std::size_t>(tiles * pairs * kTokens));
  auto task = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      const auto* from = static_cast<const std::uint16_t*>(x.data) + m * x.row_stride;
      std::uint32_t* to = out.data() + m / kTokens * pairs * kTokens + m % kTokens;
      for (std::int64_t c = 0; c + 1 < x.cols; c += 2) {
        const std::uint32_t low = from[c * x.col_stride], high = from[(c + 1) * x.col_stride];
        to[c / 2 * kTokens] = low | high << 16;
      }
      if (x.cols % 2 != 0) to[x.cols / 2 * kTokens] = from[(x.cols - 1) * x.col_stride];
    }
  };
  for_tokens(x, executor, kTokens, task);
  return out;
}

std::uint16_t bfloat16_bits(float value) noexcept {
  const std::uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);  // NaN stays one
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

std::uint16_t half_bits(float value) noexcept {
  const std::uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds beyond the largest half
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2⁻²⁴ in the low bits
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | rounded >> 13);
}

void store_block(const float* sums, std::int64_t stride, const MatrixView& y, std::int64_t first,
                 std::int64_t rows) noexcept {
  if (y.dtype == DType::f32) {
    store_bits<float>(sums, stride, y, first, rows, [](float value) noexcept { return value; });
  } else {
    store_bits<std::uint16_t>(sums, stride, y, first, rows, y.dtype == DType::f16 ? half_bits : bfloat16_bits);
  }
}

}  // namespace stun_ext::detail
