// SPDX-License-Identifier: Apache-2.0
#include "sparse/expert_function.hpp"

#include <algorithm>
#include <cmath>

namespace stun_ext::detail {
namespace {

/// Reads a value no later than one at its place or below is written, so that rows become their results in place.
template <class Phi>
void apply_in_place(const ExpertFunction& f, float* h, std::int64_t count, Phi&& phi) noexcept {
  if (!f.is_gated) {
    for (std::int64_t i = 0; i < count; ++i) h[i] = phi(h[i]);
    return;
  }
  const std::int64_t step = f.is_interleaved ? 2 : 1;
  const float* up = f.is_interleaved ? h + 1 : h + count;
  for (std::int64_t i = 0; i < count; ++i) {
    // Written so that a NaN stays one.
    const float gate = h[i * step] > f.limit ? f.limit : h[i * step];
    float linear = up[i * step];
    linear = linear > f.limit ? f.limit : linear < -f.limit ? -f.limit : linear;
    h[i] = phi(gate) * (linear + f.up_offset);
  }
}

float gelu_tanh(float z) noexcept {
  constexpr float kRootOf2OverPi = 0.7978845608028654f;
  return 0.5f * z * (1.0f + std::tanh(kRootOf2OverPi * (z + 0.044715f * z * z * z)));
}

}  // namespace

void apply(const ExpertFunction& function, float* h, std::int64_t intermediate) noexcept {
  const float alpha = function.alpha;
  switch (function.activation) {
    case Activation::silu:
      return apply_in_place(function, h, intermediate, [alpha](float z) { return z / (1.0f + std::exp(-alpha * z)); });
    case Activation::gelu:
      return apply_in_place(function, h, intermediate,
                            [](float z) { return 0.5f * z * std::erfc(-z * 0.7071067811865476f); });
    case Activation::gelu_tanh:
      return apply_in_place(function, h, intermediate, gelu_tanh);
    case Activation::relu:
      return apply_in_place(function, h, intermediate, [](float z) { return z < 0.0f ? 0.0f : z; });
    case Activation::relu_squared:
      return apply_in_place(function, h, intermediate, [](float z) { return z < 0.0f ? 0.0f : z * z; });
  }
}

}  // namespace stun_ext::detail
