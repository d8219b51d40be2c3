// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <variant>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/sparse.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// φ(z) in float32.
enum class Activation : std::int32_t {
  silu,          ///< z · sigmoid(alpha · z)
  gelu,          ///< z · Φ(z), by the error function
  gelu_tanh,     ///< its approximation by tanh
  relu,          ///< max(z, 0)
  relu_squared,  ///< max(z, 0)²
};

/// What lies between the projections of an expert, for a hidden row h = up(x) + bias:
///   gated      h holds gate and up rows, a = φ(min(gate, limit)) · (clamp(up, -limit, limit) + up_offset)
///   not gated  a = φ(h)
/// gpt-oss is {silu, gated, interleaved, alpha 1.702, limit 7, up_offset 1}.
struct ExpertFunction {
  Activation activation = Activation::silu;
  bool is_gated = true;
  bool is_interleaved = false;  ///< rows gate 0, up 0, gate 1, …; else all gate rows, then all up rows
  float alpha = 1.0f;           ///< of silu alone; positive
  float limit = std::numeric_limits<float>::infinity();  ///< positive; gated experts alone
  float up_offset = 0.0f;
};

/// A matrix of an expert: packed, or dense (float32, float16 or bfloat16, elements of a row together) where packing
/// does not pay.
using ExpertWeight = std::variant<PackedMatrix, ConstMatrixView>;

/// The routed experts of a layer, checked; what is dense or lies in the caller's buffers must outlive it, while those
/// of PackedFile::experts keep the file mapped.
class Experts {
 public:
  /// @param up         for each of E experts [I, H], or [2 I, H] if gated.
  /// @param down       for each expert [H, I].
  /// @param up_bias    [E, rows of up] of float32, float16 or bfloat16, or a view without data: none.
  /// @param down_bias  [E, H], likewise.
  /// @throws std::invalid_argument if there is no expert, if shapes, types or strides are not as above, or if a number
  ///         of `function` is out of range.
  Experts(std::vector<ExpertWeight> up, std::vector<ExpertWeight> down, const ExpertFunction& function = {},
          ConstMatrixView up_bias = {}, ConstMatrixView down_bias = {});

  std::int64_t num_experts() const noexcept { return static_cast<std::int64_t>(up_.size()); }
  std::int64_t hidden_size() const noexcept { return hidden_size_; }              ///< H
  std::int64_t intermediate_size() const noexcept { return intermediate_size_; }  ///< I
  const ExpertFunction& function() const noexcept { return function_; }
  Span<const ExpertWeight> up() const noexcept { return up_; }
  Span<const ExpertWeight> down() const noexcept { return down_; }
  ConstMatrixView up_bias() const noexcept { return up_bias_; }
  ConstMatrixView down_bias() const noexcept { return down_bias_; }

 private:
  friend class PackedFile;

  std::vector<ExpertWeight> up_, down_;
  ExpertFunction function_;
  ConstMatrixView up_bias_, down_bias_;
  std::int64_t hidden_size_ = 0, intermediate_size_ = 0;
  std::shared_ptr<const void> storage_;  ///< the file that they lie in, if any
};

/// y[t] = Σ_j top_k_weights[t, j] · down_e(a_e(x[t])) with e = top_k_index[t, j]: the expert block of a layer, from the
/// router's choice to its output. Each expert's weights are read once for all of its tokens.
///
/// Products are those of packed_matmul and dense_matmul; a is rounded to x's type, as between two modules of a model,
/// everything else is float32 until y is rounded. Sums run over the experts in ascending order. The result does not
/// depend on the number of threads.
///
/// @param x              [T, H] float32, float16 or bfloat16, any strides.
/// @param top_k_index    [T, k] int64, any strides. Ids outside of [0, E) stand for experts of another process:
/// skipped.
/// @param top_k_weights  [T, k] float32, float16 or bfloat16, any strides.
/// @param y              [T, H] float32, float16 or bfloat16, any strides, distinct from what is read.
/// @throws std::invalid_argument if shapes disagree or a type is not as above.
void expert_forward(ConstMatrixView x, ConstMatrixView top_k_index, ConstMatrixView top_k_weights,
                    const Experts& experts, MatrixView y, Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
