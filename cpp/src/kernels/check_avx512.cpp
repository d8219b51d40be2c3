// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "check.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kAhead = 8192;  // bytes

inline void prefetch(const void* from) noexcept { _mm_prefetch(static_cast<const char*>(from) + kAhead, _MM_HINT_T0); }

bool any_above_u16(const std::uint16_t* bits, std::int64_t count, std::uint16_t limit) noexcept {
  constexpr std::int64_t kLanes = 32;
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i highest = _mm512_setzero_si512();
  std::int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    prefetch(bits + c);
    highest = _mm512_max_epu16(highest, _mm512_and_si512(_mm512_loadu_si512(bits + c), magnitude));
  }
  const __mmask32 above = _mm512_cmpgt_epu16_mask(highest, _mm512_set1_epi16(static_cast<short>(limit)));
  return above != 0 || check_scalar.any_above_u16(bits + c, count - c, limit);
}

bool any_above_u32(const std::uint32_t* bits, std::int64_t count, std::uint32_t limit) noexcept {
  constexpr std::int64_t kLanes = 16;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i highest = _mm512_setzero_si512();
  std::int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    prefetch(bits + c);
    highest = _mm512_max_epu32(highest, _mm512_and_si512(_mm512_loadu_si512(bits + c), magnitude));
  }
  const __mmask16 above = _mm512_cmpgt_epu32_mask(highest, _mm512_set1_epi32(static_cast<int>(limit)));
  return above != 0 || check_scalar.any_above_u32(bits + c, count - c, limit);
}

}  // namespace

const CheckKernels check_avx512 = {any_above_u16, any_above_u32};

}  // namespace stun_ext::detail
