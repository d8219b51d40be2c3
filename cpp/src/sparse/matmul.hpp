// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/matmul.hpp"
#include "sparse/activations.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/sparse.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

MatmulRows rows_of(const PackedMatrix& weight) noexcept;
MatmulRows rows_of(const ConstMatrixView& weight) noexcept;  ///< elements of a row lie together

/// Whether the processor, the instruction set in use and the system allow it. Asks the system when tiles come up first.
bool has_products(Products products);

/// The fastest for these types and so many tokens.
Products choose_products(DType weight, DType x, std::int64_t tokens);

/// y[m · y_stride + r] = Σ W · x of the rows in groups [begin, end) for `tokens` in their form; `dtype` is the
/// weights'. Both at least one. Tiles take whole multiples of kTileGroups groups best.
void multiply_groups(Products products, DType dtype, const MatmulRows& weight, std::int64_t begin, std::int64_t end,
                     const void* form, std::int64_t tokens, float* y, std::int64_t y_stride) noexcept;
constexpr std::int64_t kTileGroups = 8;

/// Arguments are checked. `products` other than f32 need bfloat16 on both sides.
void multiply(Products products, ConstMatrixView x, const MatmulRows& weight, DType dtype, MatrixView y,
              Executor& executor);

}  // namespace stun_ext::detail
