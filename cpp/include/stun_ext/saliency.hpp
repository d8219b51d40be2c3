// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// Wanda scores (Sun et al., arXiv 2306.11695, eq. 1): S_ij = |W_ij| · sqrt(input_sq_norm_j), in float32.
///
/// @param weight         [R, C] float32, float16 or bfloat16, any strides, finite.
/// @param input_sq_norm  C values, sum over the tokens that reached this matrix of the squared input feature;
///                       finite, >= 0. Empty means magnitude: S = |W|.
/// @param out            [R, C] float32.
/// @throws std::invalid_argument on shapes, dtypes, NaN or Inf (naming the row or the feature), a negative norm.
void wanda_scores(ConstMatrixView weight, Span<const float> input_sq_norm, MatrixView out,
                  Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
