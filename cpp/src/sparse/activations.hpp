// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// How products are taken: in float32, or of bfloat16 weights and x by an instruction of AVX-512 or by tiles.
enum class Products { f32, bf16, tiles };

// A form: tokens [tokens, cols] as the kernels for `products` read them (kernels/matmul.hpp), whole blocks of columns,
// the rest zero. It starts a cache line.

/// Bytes of a form, a multiple of 64.
std::int64_t form_bytes(Products products, std::int64_t tokens, std::int64_t cols) noexcept;

/// Tokens whose memory no other tokens share, so that threads may write forms at the same time.
constexpr std::int64_t kFormTokens = 16;

/// Writes token `position` of a form of `tokens`, of x[row]; the last token's call also writes what follows it.
/// Products other than f32 need bfloat16.
void write_token(Products products, const ConstMatrixView& x, std::int64_t row, void* form, std::int64_t position,
                 std::int64_t tokens) noexcept;

/// The same of float32 values, rounded to `dtype` as store_block does. Products other than f32 need bfloat16.
void write_values(Products products, DType dtype, const float* values, std::int64_t cols, void* form,
                  std::int64_t position, std::int64_t tokens) noexcept;

/// Rounded as store_block does; public for its test.
std::uint16_t half_bits(float value) noexcept;
std::uint16_t bfloat16_bits(float value) noexcept;

/// y[m, first + r] = sums[m · stride + r] for `rows` r, rounded to nearest, ties to even.
void store_block(const float* sums, std::int64_t stride, const MatrixView& y, std::int64_t first,
                 std::int64_t rows) noexcept;

}  // namespace stun_ext::detail
