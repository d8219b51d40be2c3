// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "check.hpp"
#include "prefetch.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

/// The kernels of an instruction set with such vectors (lanes_<isa>.hpp).
template <class L, bool (*CheckKernels::*rest)(const typename L::Bits*, std::int64_t, typename L::Bits) noexcept>
bool any_above(const typename L::Bits* bits, std::int64_t count, typename L::Bits limit) noexcept {
  using Bits = typename L::Bits;
  constexpr std::int64_t kStep = 64 / static_cast<std::int64_t>(sizeof(Bits));  // a cache line
  constexpr std::int64_t kVectors = kStep / L::kWidth;
  typename L::Value highest[kVectors];
  STUN_EXT_UNROLL
  for (int v = 0; v < kVectors; ++v) highest[v] = L::fill(0);
  std::int64_t c = 0;
  for (; c + kStep <= count; c += kStep) {
    prefetch<8192>(bits + c, 64);
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      highest[v] = L::higher(highest[v], L::magnitude(L::load(bits + c + v * L::kWidth)));
    }
  }
  STUN_EXT_UNROLL
  for (int v = 1; v < kVectors; ++v) highest[0] = L::higher(highest[0], highest[v]);
  return L::any(L::greater(highest[0], L::fill(static_cast<int>(limit)))) ||
         (check_scalar.*rest)(bits + c, count - c, limit);
}

template <class Narrow, class Wide>
constexpr CheckKernels check_kernels() noexcept {
  return {any_above<Narrow, &CheckKernels::any_above_u16>, any_above<Wide, &CheckKernels::any_above_u32>};
}

}  // namespace
}  // namespace stun_ext::detail
