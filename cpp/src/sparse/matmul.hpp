// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/matmul.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/sparse.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

MatmulRows rows_of(const PackedMatrix& weight) noexcept;
MatmulRows rows_of(const ConstMatrixView& weight) noexcept;  ///< elements of a row lie together

/// How products are taken: in float32, or of bfloat16 weights and x by an instruction of AVX-512 or by tiles.
enum class Products { f32, bf16, tiles };

/// Whether the processor, the instruction set in use and the system allow it. Asks the system when tiles come up first.
bool has_products(Products products);

/// The fastest for these types and so many tokens.
Products choose_products(DType weight, DType x, std::int64_t tokens);

/// Arguments are checked. `products` other than f32 need bfloat16 on both sides.
void multiply(Products products, ConstMatrixView x, const MatmulRows& weight, DType dtype, MatrixView y,
              Executor& executor);

}  // namespace stun_ext::detail
