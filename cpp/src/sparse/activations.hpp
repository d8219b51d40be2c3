// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "aligned.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

// x [tokens, cols] of any strides as the kernels of kernels/matmul.hpp read it: whole blocks of columns, the rest zero.

AlignedVector<float> padded_floats(const ConstMatrixView& x, Executor& executor);
AlignedVector<std::uint16_t> padded_bits(const ConstMatrixView& x, Executor& executor);  ///< bfloat16
AlignedVector<std::uint32_t> token_tiles(const ConstMatrixView& x, Executor& executor);  ///< bfloat16

/// y[m, first + r] = sums[m · stride + r] for `rows` r, rounded to nearest, ties to even.
void store_block(const float* sums, std::int64_t stride, const MatrixView& y, std::int64_t first,
                 std::int64_t rows) noexcept;

/// Rounded as store_block does; public for its test.
std::uint16_t half_bits(float value) noexcept;
std::uint16_t bfloat16_bits(float value) noexcept;

}  // namespace stun_ext::detail
