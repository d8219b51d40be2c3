// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "nm.hpp"

namespace stun_ext::detail {
namespace {

/// Bit i: lane i of every block of m is left of the lane that a rotation by r brings to it.
constexpr std::uint32_t left_of_rotated(int m, int r) noexcept {
  std::uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<std::uint32_t>(i % m < m - r) << i;
  return bits;
}

struct U16 {
  using Bits = std::uint16_t;
  static constexpr int kLanes = 32;
  static constexpr auto rest = &NmKernels::keep_highest_u16;

  /// Integers in the order of the floating-point numbers.
  static __m512i ordered(__m512i bits) noexcept {
    const __m512i sign = _mm512_srai_epi16(bits, 15);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
    return _mm512_sub_epi16(_mm512_xor_si512(magnitude, sign), sign);
  }
  /// Lane i of every block of m gets lane (i + r) % m.
  template <int m, int r>
  static __m512i rotated(__m512i x) noexcept {
    if constexpr (m == 2) return _mm512_ror_epi32(x, 16);
    if constexpr (m == 4) return _mm512_ror_epi64(x, 16 * r);
    if constexpr (m == 8) return _mm512_alignr_epi8(x, x, 2 * r);
    const __m512i swapped = _mm512_permutex_epi64(x, 0x4e);  // the halves of each block of 16
    return r < 8 ? _mm512_alignr_epi8(swapped, x, 2 * (r % 8)) : _mm512_alignr_epi8(x, swapped, 2 * (r % 8));
  }
  /// Adds 1 where `other` comes before `x`.
  static __m512i count(__m512i sum, __m512i other, __m512i x, __mmask32 left) noexcept {
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i limit = _mm512_mask_sub_epi16(x, left, x, one);  // equal scores to the right come before, too
    return _mm512_mask_add_epi16(sum, _mm512_cmpgt_epi16_mask(other, limit), sum, one);
  }
  static void write(__m512i sum, std::int64_t n, std::uint8_t* mask) noexcept {
    const __mmask32 kept = _mm512_cmplt_epi16_mask(sum, _mm512_set1_epi16(static_cast<short>(n)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(mask), _mm256_maskz_set1_epi8(kept, 1));
  }
};

struct U32 {
  using Bits = std::uint32_t;
  static constexpr int kLanes = 16;
  static constexpr auto rest = &NmKernels::keep_highest_u32;

  static __m512i ordered(__m512i bits) noexcept {
    const __m512i sign = _mm512_srai_epi32(bits, 31);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    return _mm512_sub_epi32(_mm512_xor_si512(magnitude, sign), sign);
  }
  template <int m, int r>
  static __m512i rotated(__m512i x) noexcept {
    if constexpr (m == 2) return _mm512_ror_epi64(x, 32);
    if constexpr (m == 4) return _mm512_alignr_epi8(x, x, 4 * r);
    if constexpr (m == 16) return _mm512_alignr_epi32(x, x, r);
    const __m512i swapped = _mm512_permutex_epi64(x, 0x4e);
    return r < 4 ? _mm512_alignr_epi8(swapped, x, 4 * (r % 4)) : _mm512_alignr_epi8(x, swapped, 4 * (r % 4));
  }
  static __m512i count(__m512i sum, __m512i other, __m512i x, __mmask32 left) noexcept {
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i limit = _mm512_mask_sub_epi32(x, static_cast<__mmask16>(left), x, one);
    return _mm512_mask_add_epi32(sum, _mm512_cmpgt_epi32_mask(other, limit), sum, one);
  }
  static void write(__m512i sum, std::int64_t n, std::uint8_t* mask) noexcept {
    const __mmask16 kept = _mm512_cmplt_epi32_mask(sum, _mm512_set1_epi32(static_cast<int>(n)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(mask), _mm_maskz_set1_epi8(kept, 1));
  }
};

template <class Type, int m, int r>
inline __m512i count_before(__m512i sum, __m512i x) noexcept {
  if constexpr (r == m)
    return sum;
  else
    return count_before<Type, m, r + 1>(Type::count(sum, Type::template rotated<m, r>(x), x, left_of_rotated(m, r)), x);
}

template <class Type, int m>
void keep(const typename Type::Bits* scores, std::int64_t count, std::int64_t n, std::uint8_t* mask,
          std::int64_t* order) noexcept {
  std::int64_t c = 0;
  for (; c + Type::kLanes <= count; c += Type::kLanes) {
    const __m512i x = Type::ordered(_mm512_loadu_si512(scores + c));
    Type::write(count_before<Type, m, 1>(_mm512_setzero_si512(), x), n, mask + c);
  }
  (nm_scalar.*Type::rest)(scores + c, count - c, n, m, mask + c, order);
}

template <class Type>
void keep_highest(const typename Type::Bits* scores, std::int64_t count, std::int64_t n, std::int64_t m,
                  std::uint8_t* mask, std::int64_t* order) noexcept {
  if (m == 2) return keep<Type, 2>(scores, count, n, mask, order);
  if (m == 4) return keep<Type, 4>(scores, count, n, mask, order);
  if (m == 8) return keep<Type, 8>(scores, count, n, mask, order);
  if (m == 16) return keep<Type, 16>(scores, count, n, mask, order);
  (nm_scalar.*Type::rest)(scores, count, n, m, mask, order);
}

}  // namespace

const NmKernels nm_avx512 = {keep_highest<U16>, keep_highest<U32>};

}  // namespace stun_ext::detail
