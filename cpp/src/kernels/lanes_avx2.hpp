// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stun_ext::detail {
namespace {

// As lanes_avx512.hpp, where the names are explained. A mask is a vector whose lanes have all bits set or none.

struct Lanes16 {
  using Bits = std::uint16_t;
  using Value = __m256i;
  using Mask = __m256i;
  static constexpr std::int64_t kWidth = 16;
  static constexpr int kWidestBlock = 32;

  static Value load(const void* from) noexcept { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void store(void* to, Value value) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
  static Value fill(int value) noexcept { return _mm256_set1_epi16(static_cast<short>(value)); }
  static Value magnitude(Value bits) noexcept { return _mm256_and_si256(bits, fill(0x7fff)); }
  static Value higher(Value a, Value b) noexcept { return _mm256_max_epi16(a, b); }
  static Value add(Value a, Value b) noexcept { return _mm256_add_epi16(a, b); }
  static Value ordered(Value bits) noexcept {
    const Value sign = _mm256_srai_epi16(bits, 15);
    return _mm256_sub_epi16(_mm256_xor_si256(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return _mm256_cmpgt_epi16(a, b); }
  static Mask equal(Value a, Value b) noexcept { return _mm256_cmpeq_epi16(a, b); }
  static Mask is_zero(Value bits) noexcept { return equal(add(bits, bits), _mm256_setzero_si256()); }
  static bool any(Mask mask) noexcept { return _mm256_testz_si256(mask, mask) == 0; }
  static std::int64_t count(Mask mask) noexcept {
    return _mm_popcnt_u32(static_cast<unsigned>(_mm256_movemask_epi8(mask))) / 2;
  }
  static Value load_where(Mask mask, const void* from) noexcept { return _mm256_and_si256(mask, load(from)); }
  static Value decrement(Value sums, Mask mask) noexcept { return _mm256_add_epi16(sums, mask); }
  struct Counter {
    void add(Mask mask) noexcept { sums = decrement(sums, mask); }
    std::int64_t total() const noexcept {
      alignas(32) std::int32_t lanes[8];
      store(lanes, _mm256_madd_epi16(sums, fill(-1)));
      std::int64_t sum = 0;
      for (const std::int32_t lane : lanes) sum += lane;
      return sum;
    }
    Value sums = _mm256_setzero_si256();
  };

  static Mask of_bytes(const std::uint8_t* from) noexcept {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return greater(_mm256_cvtepu8_epi16(bytes), _mm256_setzero_si256());
  }
  /// The lanes of two masks as bytes, all bits set or none. Packing works on 128 bits at a time.
  static __m256i bytes(Mask first, Mask second) noexcept {
    return _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
  }
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    store(to, _mm256_and_si256(bytes(first, second), _mm256_set1_epi8(1)));
  }
  static std::uint64_t bits(Mask first, Mask second) noexcept {
    return static_cast<unsigned>(_mm256_movemask_epi8(bytes(first, second)));
  }

  static Value shuffle(Value value, Value from) noexcept { return _mm256_shuffle_epi8(value, from); }
  template <int block, int bytes>
  static Value rotated(Value x) noexcept {
    static_assert(block == 32);
    const Value swapped = _mm256_permute2x128_si256(x, x, 1);
    return bytes < 16 ? _mm256_alignr_epi8(swapped, x, bytes % 16) : _mm256_alignr_epi8(x, swapped, bytes % 16);
  }
};

struct Lanes32 {
  using Bits = std::uint32_t;
  using Value = __m256i;
  using Mask = __m256i;
  static constexpr std::int64_t kWidth = 8;
  static constexpr int kWidestBlock = 32;

  static Value load(const void* from) noexcept { return Lanes16::load(from); }
  static void store(void* to, Value value) noexcept { Lanes16::store(to, value); }
  static Value fill(int value) noexcept { return _mm256_set1_epi32(value); }
  static Value magnitude(Value bits) noexcept { return _mm256_and_si256(bits, fill(0x7fffffff)); }
  static Value higher(Value a, Value b) noexcept { return _mm256_max_epi32(a, b); }
  static Value add(Value a, Value b) noexcept { return _mm256_add_epi32(a, b); }
  static Value ordered(Value bits) noexcept {
    const Value sign = _mm256_srai_epi32(bits, 31);
    return _mm256_sub_epi32(_mm256_xor_si256(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return _mm256_cmpgt_epi32(a, b); }
  static Mask is_zero(Value bits) noexcept { return _mm256_cmpeq_epi32(add(bits, bits), _mm256_setzero_si256()); }
  static bool any(Mask mask) noexcept { return Lanes16::any(mask); }
  static std::int64_t count(Mask mask) noexcept {
    return _mm_popcnt_u32(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask))));
  }
  static Value load_where(Mask mask, const void* from) noexcept { return _mm256_and_si256(mask, load(from)); }
  static Value decrement(Value sums, Mask mask) noexcept { return _mm256_add_epi32(sums, mask); }
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_and_si128(bytes, _mm_set1_epi8(1)));
  }
  static Value shuffle(Value value, Value from) noexcept { return _mm256_shuffle_epi8(value, from); }
  template <int block, int bytes>
  static Value rotated(Value x) noexcept {
    return Lanes16::rotated<block, bytes>(x);
  }

  static Mask low(Lanes16::Mask mask) noexcept { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(mask)); }
  static Mask high(Lanes16::Mask mask) noexcept { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(mask, 1)); }

  static Value of_f16(const std::uint16_t* from) noexcept {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castps_si256(_mm256_cvtph_ps(bits));
  }
  static Value of_bf16(const std::uint16_t* from) noexcept {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
  }
  static Value times(Value bits, const float* factors) noexcept {
    return _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_loadu_ps(factors)));
  }
  static Lanes16::Value upper_halves(Value first, Value second) noexcept {
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
    return _mm256_permute4x64_epi64(packed, 0xd8);  // packing works on 128 bits at a time
  }
};

}  // namespace
}  // namespace stun_ext::detail
