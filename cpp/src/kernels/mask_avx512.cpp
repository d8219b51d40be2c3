// SPDX-License-Identifier: Apache-2.0
#include "lanes_avx512.hpp"
#include "mask_lanes.hpp"

namespace stun_ext::detail {
namespace {

/// Of bfloat16 the even and the odd columns are widened where they stand, and so are their uppers.
bool uppers_bf16(const std::uint16_t* row, const float* norm, std::int64_t count, std::int16_t* out) noexcept {
  constexpr std::int64_t kFloats = Lanes32::kWidth;
  constexpr std::int64_t kHalves = Lanes16::kWidth;
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  constexpr __mmask32 kOdd = 0xaaaaaaaau;
  __m512i highest = Lanes16::fill(0);
  std::int64_t c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    prefetch<8192, Cache::second>(row + c, 2 * kHalves);
    __m512i key = Lanes16::magnitude(Lanes16::load(row + c));
    highest = Lanes16::higher(highest, key);
    if (norm != nullptr) {
      const __m512 first = _mm512_loadu_ps(norm + c), second = _mm512_loadu_ps(norm + c + kFloats);
      const __m512 of_even =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(key, 16)), _mm512_permutex2var_ps(first, even, second));
      const __m512 of_odd =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(key, upper)), _mm512_permutex2var_ps(first, odd, second));
      key = _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(_mm512_castps_si512(of_even), 16),
                                    _mm512_castps_si512(of_odd));
    }
    Lanes16::store(out + c, key);
  }
  constexpr int kHighest = MaskLanes<Lanes16, Lanes32>::BF16::highest;
  const bool is_finite = !Lanes16::any(Lanes16::greater(highest, Lanes16::fill(kHighest)));
  return mask_scalar.uppers_bf16(row + c, norm == nullptr ? nullptr : norm + c, count - c, out + c) && is_finite;
}

}  // namespace

const MaskKernels mask_avx512 = MaskLanes<Lanes16, Lanes32>::kernels(uppers_bf16);

}  // namespace stun_ext::detail
