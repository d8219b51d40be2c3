// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "transpose_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Zips {
  using Value = __m256i;
  static constexpr std::int64_t kParts = 2;
  template <class Bits>
  static Value load(const Bits* from, std::int64_t stride) noexcept {
    const auto part = [=](std::int64_t p) noexcept {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + p * stride));
    };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
  }
  static void store(void* to, Value value) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
  static Value low16(Value a, Value b) noexcept { return _mm256_unpacklo_epi16(a, b); }
  static Value high16(Value a, Value b) noexcept { return _mm256_unpackhi_epi16(a, b); }
  static Value low32(Value a, Value b) noexcept { return _mm256_unpacklo_epi32(a, b); }
  static Value high32(Value a, Value b) noexcept { return _mm256_unpackhi_epi32(a, b); }
  static Value low64(Value a, Value b) noexcept { return _mm256_unpacklo_epi64(a, b); }
  static Value high64(Value a, Value b) noexcept { return _mm256_unpackhi_epi64(a, b); }
};

}  // namespace

const TransposeKernels transpose_avx2 = TransposeLanes<Zips>::kernels();

}  // namespace stun_ext::detail
