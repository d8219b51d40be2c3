// SPDX-License-Identifier: Apache-2.0
#include "sparse/activations.hpp"

#include <algorithm>

#include "load.hpp"

namespace stun_ext::detail {
namespace {

std::int64_t padded(std::int64_t cols) noexcept { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }

/// A token of bfloat16 bits, which `bits_of` gives by column, in one of the forms for it.
template <class BitsOf>
void write_bits(Products products, std::int64_t cols, void* form, std::int64_t position, std::int64_t tokens,
                BitsOf&& bits_of) noexcept {
  const std::int64_t stride = padded(cols);
  if (products == Products::bf16) {
    std::uint16_t* to = static_cast<std::uint16_t*>(form) + position * stride;
    for (std::int64_t c = 0; c < cols; ++c) to[c] = bits_of(c);
    std::fill(to + cols, to + stride, std::uint16_t{0});
    return;
  }
  const std::int64_t pairs = stride / 2, whole = cols / 2, lane = position % kFormTokens;
  std::uint32_t* tile = static_cast<std::uint32_t*>(form) + (position - lane) * pairs;
  for (std::int64_t p = 0; p < whole; ++p) {
    tile[p * kFormTokens + lane] = std::uint32_t{bits_of(2 * p)} | std::uint32_t{bits_of(2 * p + 1)} << 16;
  }
  for (std::int64_t p = whole; p < pairs; ++p) {
    tile[p * kFormTokens + lane] = 2 * p < cols ? std::uint32_t{bits_of(2 * p)} : 0;
  }
  if (position + 1 < tokens) return;
  for (std::int64_t p = 0; p < pairs; ++p) {
    std::fill(tile + p * kFormTokens + lane + 1, tile + (p + 1) * kFormTokens, std::uint32_t{0});
  }
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

std::int64_t form_bytes(Products products, std::int64_t tokens, std::int64_t cols) noexcept {
  const std::int64_t of_token = padded(cols) * (products == Products::f32 ? 4 : 2);
  if (products == Products::tiles) tokens = (tokens + kFormTokens - 1) / kFormTokens * kFormTokens;
  return (tokens * of_token + 63) / 64 * 64;
}

void write_token(Products products, const ConstMatrixView& x, std::int64_t row, void* form, std::int64_t position,
                 std::int64_t tokens) noexcept {
  if (products == Products::f32) {
    const std::int64_t stride = padded(x.cols);
    float* to = static_cast<float*>(form) + position * stride;
    load_block(x, row, 1, 0, x.cols, to, stride);
    std::fill(to + x.cols, to + stride, 0.0f);
    return;
  }
  const auto* from = static_cast<const std::uint16_t*>(x.data) + row * x.row_stride;
  if (x.col_stride == 1) {
    write_bits(products, x.cols, form, position, tokens, [from](std::int64_t c) { return from[c]; });
  } else {
    const std::int64_t stride = x.col_stride;
    write_bits(products, x.cols, form, position, tokens, [=](std::int64_t c) { return from[c * stride]; });
  }
}

void write_values(Products products, DType dtype, const float* values, std::int64_t cols, void* form,
                  std::int64_t position, std::int64_t tokens) noexcept {
  if (products != Products::f32) {
    return write_bits(products, cols, form, position, tokens, [=](std::int64_t c) { return bfloat16_bits(values[c]); });
  }
  const std::int64_t stride = padded(cols);
  float* to = static_cast<float*>(form) + position * stride;
  if (dtype == DType::f32) {
    std::copy_n(values, cols, to);
  } else if (dtype == DType::bf16) {
    for (std::int64_t c = 0; c < cols; ++c) to[c] = to_float(BFloat16{bfloat16_bits(values[c])});
  } else {
    for (std::int64_t c = 0; c < cols; ++c) to[c] = to_float(Half{half_bits(values[c])});
  }
  std::fill(to + cols, to + stride, 0.0f);
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
