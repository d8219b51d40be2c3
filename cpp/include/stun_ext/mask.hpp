// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// A writable [rows, cols] mask of bytes, row-major with a row stride; 1 = kept, 0 = pruned.
struct MaskView {
  std::uint8_t* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
};

/// Weights that Wanda prunes in a row of `cols` weights: int(cols · sparsity), as the released code truncates.
std::int64_t pruned_per_row(std::int64_t cols, double sparsity);

/// Per-row Wanda mask: in row r the prune_counts[r] lowest scores |W|·sqrt(input_sq_norm) go, ties from the lowest
/// column up (a stable ascending sort), exactly. Scores and errors as in wanda_scores; empty norms mean magnitude.
/// W is read once: where it turns out to hold NaN or Inf, what the mask holds after the error is unspecified.
///
/// @param prune_counts  one count in [0, C] for each of the R rows.
/// @param mask          [R, C].
void wanda_mask(ConstMatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                MaskView mask, Executor& executor = default_executor());

/// The same decision, written as zeros (+0) straight into the weights; no mask is made. After an error W is unchanged.
/// @return  the number of weights that are exactly zero (of either sign) afterwards.
std::int64_t wanda_prune(MatrixView weight, Span<const float> input_sq_norm, Span<const std::int64_t> prune_counts,
                         Executor& executor = default_executor());

/// n:m mask: of every m consecutive columns the n highest scores stay; ties prune the lowest column first. Scores are
/// read once: where they turn out to hold NaN, what the mask holds after the error is unspecified.
///
/// @param scores  [R, C] float32, float16, bfloat16, any strides, without NaN; C a multiple of m, 1 <= n < m.
void nm_mask(ConstMatrixView scores, std::int64_t n, std::int64_t m, MaskView mask,
             Executor& executor = default_executor());

/// n:m pruning by Wanda: of every m consecutive weights of a row those with the n highest scores
/// |W|·sqrt(input_sq_norm) stay, the others become +0; ties prune the lowest column first. Scores and errors as in
/// wanda_scores; empty norms mean magnitude. After an error W is unchanged.
///
/// @param weight  [R, C] float32, float16 or bfloat16, any strides, finite; C a multiple of m, 1 <= n < m.
/// @return  the number of weights that are exactly zero (of either sign) afterwards.
std::int64_t nm_prune(MatrixView weight, Span<const float> input_sq_norm, std::int64_t n, std::int64_t m,
                      Executor& executor = default_executor());

/// Zeroes (+0) in place the weights whose mask is 0; the others keep their bits.
/// @param weight  [R, C] float32, float16 or bfloat16, any strides.
void apply_mask(MatrixView weight, MaskView mask, Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
