// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/experts.hpp"

#include <cmath>
#include <utility>

#include "check.hpp"

namespace stun_ext {
namespace {

using detail::fail;

constexpr const char* kOperation = "Experts";
constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::f16, DType::bf16};

struct Shape {
  std::int64_t rows, cols;
};

Shape shape_of(const ExpertWeight& weight) noexcept {
  if (const auto* packed = std::get_if<PackedMatrix>(&weight)) return {packed->rows(), packed->cols()};
  const auto& dense = std::get<ConstMatrixView>(weight);
  return {dense.rows, dense.cols};
}

void check_weights(const char* name, const std::vector<ExpertWeight>& weights, const Shape& shape) {
  for (std::size_t e = 0; e < weights.size(); ++e) {
    if (const auto* dense = std::get_if<ConstMatrixView>(&weights[e])) {
      detail::check_view(kOperation, name, *dense, kFloats);
      if (dense->cols > 1 && dense->col_stride != 1) {
        fail(kOperation, name, " of expert ", e, " must have rows of contiguous elements, got column stride ",
             dense->col_stride);
      }
    }
    const Shape found = shape_of(weights[e]);
    if (found.rows != shape.rows || found.cols != shape.cols) {
      fail(kOperation, name, " of expert ", e, " must be [", shape.rows, ", ", shape.cols, "], got [", found.rows, ", ",
           found.cols, "]");
    }
  }
}

void check_bias(const char* name, const ConstMatrixView& bias, std::size_t experts, std::int64_t cols) {
  if (bias.data == nullptr) return;
  detail::check_view(kOperation, name, bias, kFloats);
  if (bias.rows != static_cast<std::int64_t>(experts) || bias.cols != cols) {
    fail(kOperation, name, " must be [", experts, ", ", cols, "], got [", bias.rows, ", ", bias.cols, "]");
  }
}

void check_function(const ExpertFunction& function) {
  const auto activation = static_cast<std::int32_t>(function.activation);
  if (activation < 0 || activation > static_cast<std::int32_t>(Activation::relu_squared)) {
    fail(kOperation, "activation must be one of those listed, got number ", activation);
  }
  if (!(function.alpha > 0.0f) || !std::isfinite(function.alpha)) {
    fail(kOperation, "alpha must be positive and finite, got ", function.alpha);
  }
  if (!(function.limit > 0.0f)) fail(kOperation, "limit must be positive, got ", function.limit);
  if (!std::isfinite(function.up_offset)) fail(kOperation, "up_offset must be finite, got ", function.up_offset);
}

}  // namespace

Experts::Experts(std::vector<ExpertWeight> up, std::vector<ExpertWeight> down, const ExpertFunction& function,
                 ConstMatrixView up_bias, ConstMatrixView down_bias)
    : up_(std::move(up)), down_(std::move(down)), function_(function), up_bias_(up_bias), down_bias_(down_bias) {
  check_function(function);
  if (up_.empty()) fail(kOperation, "up must have at least one expert, got none");
  if (down_.size() != up_.size()) {
    fail(kOperation, "down must have as many experts as up, ", up_.size(), ", got ", down_.size());
  }
  const Shape shape = shape_of(up_[0]);
  if (function.is_gated && shape.rows % 2 != 0) {
    fail(kOperation, "up of gated experts must have as many gate rows as up rows, got ", shape.rows, " rows in all");
  }
  hidden_size_ = shape.cols;
  intermediate_size_ = function.is_gated ? shape.rows / 2 : shape.rows;
  check_weights("up", up_, shape);
  check_weights("down", down_, {hidden_size_, intermediate_size_});
  check_bias("up_bias", up_bias, up_.size(), shape.rows);
  check_bias("down_bias", down_bias, down_.size(), hidden_size_);
}

}  // namespace stun_ext
