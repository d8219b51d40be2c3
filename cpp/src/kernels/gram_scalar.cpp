// SPDX-License-Identifier: Apache-2.0
#include "gram.hpp"

namespace stun_ext::detail {
namespace {

constexpr int kRowsA = 4;
constexpr int kRowsB = 8;

// Multiplication and addition round separately here: twice the roundings that the bound on them allows for is kept.
void multiply(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  float sum[kRowsA][kRowsB] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    for (int i = 0; i < kRowsA; ++i) {
      for (int j = 0; j < kRowsB; ++j) sum[i][j] += a[k * kRowsA + i] * b[k * kRowsB + j];
    }
  }
  for (int i = 0; i < kRowsA; ++i) {
    for (int j = 0; j < kRowsB; ++j) {
      float& to = out[i * stride + j];
      to = accumulate ? to + sum[i][j] : sum[i][j];
    }
  }
}

}  // namespace

const GramKernels gram_scalar = {kRowsA, kRowsB, multiply};

}  // namespace stun_ext::detail
