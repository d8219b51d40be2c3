// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "matmul_lanes.hpp"

namespace stun_ext::detail {
namespace {

/// 32 columns to a vector: one instruction spreads them, one multiplies and adds pairs of columns.
struct Lanes {
  using Stored = std::uint16_t;
  using X = std::uint16_t;
  using Spread = std::uint16_t;
  using Vector = __m512i;
  using Sum = __m512;
  static constexpr int kVectors = 1;
  static constexpr int kTokens = 4;
  static void expand(std::uint32_t mask, const std::uint16_t* from, __m512i* out) noexcept {
    *out = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(from));
  }
  static void load(const std::uint16_t* from, __m512i* out) noexcept { *out = _mm512_loadu_si512(from); }
  static void store(const __m512i* v, std::uint16_t* to) noexcept { _mm512_store_si512(to, *v); }
  static __m512i load_spread(const std::uint16_t* from) noexcept { return _mm512_load_si512(from); }
  static __m512 zero() noexcept { return _mm512_setzero_ps(); }
  static __m512 dot(__m512 sum, __m512i weights, const std::uint16_t* x) noexcept {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(x));
  }
  static float total(__m512 sum) noexcept { return _mm512_reduce_add_ps(sum); }
};

}  // namespace

const Multiply<std::uint16_t> matmul_bf16_avx512bf16 = MatmulLanes<Lanes>::multiply;

}  // namespace stun_ext::detail
