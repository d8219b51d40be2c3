// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "transpose_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Zips {
  using Value = __m512i;
  static constexpr std::int64_t kParts = 4;
  template <class Bits>
  static Value load(const Bits* from, std::int64_t stride) noexcept {
    const auto part = [=](std::int64_t p) noexcept {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + p * stride));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(part(2)), part(3), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static void store(void* to, Value value) noexcept { _mm512_storeu_si512(to, value); }
  static Value low16(Value a, Value b) noexcept { return _mm512_unpacklo_epi16(a, b); }
  static Value high16(Value a, Value b) noexcept { return _mm512_unpackhi_epi16(a, b); }
  static Value low32(Value a, Value b) noexcept { return _mm512_unpacklo_epi32(a, b); }
  static Value high32(Value a, Value b) noexcept { return _mm512_unpackhi_epi32(a, b); }
  static Value low64(Value a, Value b) noexcept { return _mm512_unpacklo_epi64(a, b); }
  static Value high64(Value a, Value b) noexcept { return _mm512_unpackhi_epi64(a, b); }
};

}  // namespace

const TransposeKernels transpose_avx512 = TransposeLanes<Zips>::kernels();

}  // namespace stun_ext::detail
