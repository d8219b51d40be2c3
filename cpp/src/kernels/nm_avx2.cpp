// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "nm.hpp"

namespace stun_ext::detail {
namespace {

/// -1 in those of `lanes` lanes of 32 / lanes bytes that, in their block of m, are left of the lane that a rotation by
/// r brings to them.
template <class Lane, int m, int r>
inline __m256i left_of_rotated() noexcept {
  alignas(32) constexpr auto kLeft = [] {
    struct Lanes {
      Lane value[32 / sizeof(Lane)];
    } left = {};
    for (int i = 0; i < static_cast<int>(32 / sizeof(Lane)); ++i) left.value[i] = static_cast<Lane>(-(i % m < m - r));
    return left;
  }();
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(kLeft.value));
}

/// Blocks of 16 bytes rotated by `bytes`, or of 32.
template <int block, int bytes>
inline __m256i rotated_bytes(__m256i x) noexcept {
  if constexpr (block == 32) {
    const __m256i swapped = _mm256_permute2x128_si256(x, x, 1);
    return bytes < 16 ? _mm256_alignr_epi8(swapped, x, bytes % 16) : _mm256_alignr_epi8(x, swapped, bytes % 16);
  } else {
    static_assert(block == 16);
    return _mm256_alignr_epi8(x, x, bytes);
  }
}

struct U16 {
  using Bits = std::uint16_t;
  static constexpr int kLanes = 16;
  static constexpr auto rest = &NmKernels::keep_highest_u16;

  /// Integers in the order of the floating-point numbers: negated where the sign is set.
  static __m256i ordered(__m256i bits) noexcept {
    const __m256i sign = _mm256_srai_epi16(bits, 15);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
    return _mm256_sub_epi16(_mm256_xor_si256(magnitude, sign), sign);
  }
  /// Lane i of every block of m gets lane (i + r) % m.
  template <int m, int r>
  static __m256i rotated(__m256i x) noexcept {
    if constexpr (m == 2)
      return _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_srli_epi32(x, 16));
    else if constexpr (m == 4)
      return _mm256_or_si256(_mm256_srli_epi64(x, 16 * r), _mm256_slli_epi64(x, 64 - 16 * r));
    else
      return rotated_bytes<2 * m, 2 * r>(x);
  }
  /// Subtracts 1 where `other` comes before `x`: it is higher, or equal and to the right.
  template <int m, int r>
  static __m256i count(__m256i sum, __m256i other, __m256i x) noexcept {
    const __m256i limit = _mm256_add_epi16(x, left_of_rotated<std::int16_t, m, r>());
    return _mm256_add_epi16(sum, _mm256_cmpgt_epi16(other, limit));
  }
  static void write(__m256i sum, std::int64_t n, std::uint8_t* mask) noexcept {
    const __m256i kept = _mm256_cmpgt_epi16(sum, _mm256_set1_epi16(static_cast<short>(-n)));
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(mask), _mm_and_si128(bytes, _mm_set1_epi8(1)));
  }
};

struct U32 {
  using Bits = std::uint32_t;
  static constexpr int kLanes = 8;
  static constexpr auto rest = &NmKernels::keep_highest_u32;

  static __m256i ordered(__m256i bits) noexcept {
    const __m256i sign = _mm256_srai_epi32(bits, 31);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    return _mm256_sub_epi32(_mm256_xor_si256(magnitude, sign), sign);
  }
  template <int m, int r>
  static __m256i rotated(__m256i x) noexcept {
    if constexpr (m == 2)
      return _mm256_shuffle_epi32(x, 0xb1);
    else
      return rotated_bytes<4 * m, 4 * r>(x);
  }
  template <int m, int r>
  static __m256i count(__m256i sum, __m256i other, __m256i x) noexcept {
    const __m256i limit = _mm256_add_epi32(x, left_of_rotated<std::int32_t, m, r>());
    return _mm256_add_epi32(sum, _mm256_cmpgt_epi32(other, limit));
  }
  static void write(__m256i sum, std::int64_t n, std::uint8_t* mask) noexcept {
    const __m256i kept = _mm256_cmpgt_epi32(sum, _mm256_set1_epi32(static_cast<int>(-n)));
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
    const __m128i bytes = _mm_packs_epi16(halves, halves);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(mask), _mm_and_si128(bytes, _mm_set1_epi8(1)));
  }
};

template <class Type, int m, int r>
inline __m256i count_before(__m256i sum, __m256i x) noexcept {
  if constexpr (r == m) {
    return sum;
  } else {
    return count_before<Type, m, r + 1>(Type::template count<m, r>(sum, Type::template rotated<m, r>(x), x), x);
  }
}

template <class Type, int m>
void keep(const typename Type::Bits* scores, std::int64_t count, std::int64_t n, std::uint8_t* mask,
          std::int64_t* order) noexcept {
  std::int64_t c = 0;
  for (; c + Type::kLanes <= count; c += Type::kLanes) {
    const __m256i x = Type::ordered(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scores + c)));
    Type::write(count_before<Type, m, 1>(_mm256_setzero_si256(), x), n, mask + c);
  }
  (nm_scalar.*Type::rest)(scores + c, count - c, n, m, mask + c, order);
}

void keep_highest_u16(const std::uint16_t* scores, std::int64_t count, std::int64_t n, std::int64_t m,
                      std::uint8_t* mask, std::int64_t* order) noexcept {
  if (m == 2) return keep<U16, 2>(scores, count, n, mask, order);
  if (m == 4) return keep<U16, 4>(scores, count, n, mask, order);
  if (m == 8) return keep<U16, 8>(scores, count, n, mask, order);
  if (m == 16) return keep<U16, 16>(scores, count, n, mask, order);
  nm_scalar.keep_highest_u16(scores, count, n, m, mask, order);
}

void keep_highest_u32(const std::uint32_t* scores, std::int64_t count, std::int64_t n, std::int64_t m,
                      std::uint8_t* mask, std::int64_t* order) noexcept {
  if (m == 2) return keep<U32, 2>(scores, count, n, mask, order);
  if (m == 4) return keep<U32, 4>(scores, count, n, mask, order);
  if (m == 8) return keep<U32, 8>(scores, count, n, mask, order);
  nm_scalar.keep_highest_u32(scores, count, n, m, mask, order);
}

}  // namespace

const NmKernels nm_avx2 = {keep_highest_u16, keep_highest_u32};

}  // namespace stun_ext::detail
