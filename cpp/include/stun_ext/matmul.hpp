// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stun_ext/executor.hpp"
#include "stun_ext/sparse.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

// y = x Wᵀ, as torch.nn.functional.linear: x [tokens, cols], W [rows, cols], y [tokens, rows].
//
// x and y are float32, float16 or bfloat16 with any strides, y distinct from what is read. Products are summed in
// float32, in an order that depends on the instruction set and the number of tokens, not on the number of threads; the
// error is at most cols · 2⁻²³ · Σ|x·w| before y is rounded. Where W and x are both bfloat16, processors with an
// instruction for it (AVX-512 BF16, AMX) multiply in bfloat16; these read subnormal numbers as 0.

/// @throws std::invalid_argument if shapes disagree or x or y is of another type.
void packed_matmul(ConstMatrixView x, const PackedMatrix& weight, MatrixView y,
                   Executor& executor = default_executor());

/// The same with a dense W, which is faster where fewer than about 15% of the weights are zero.
/// @param weight  float32, float16 or bfloat16; elements of a row lie together (col_stride 1).
void dense_matmul(ConstMatrixView x, ConstMatrixView weight, MatrixView y, Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
