// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stun_ext::detail {
namespace {

// Vectors of integers, and of the bits of floating-point numbers, for kernels that are written once
// (<family>_lanes.hpp). The three files lanes_<isa>.hpp hold the same names.

/// Lanes of 16 bits.
struct Lanes16 {
  using Bits = std::uint16_t;
  using Value = __m512i;
  using Mask = __mmask32;
  static constexpr std::int64_t kWidth = 32;
  static constexpr int kWidestBlock = 32;  ///< bytes that `rotated` handles

  static Value load(const void* from) noexcept { return _mm512_loadu_si512(from); }
  static void store(void* to, Value value) noexcept { _mm512_storeu_si512(to, value); }
  static Value fill(int value) noexcept { return _mm512_set1_epi16(static_cast<short>(value)); }
  static Value magnitude(Value bits) noexcept { return _mm512_and_si512(bits, fill(0x7fff)); }
  static Value higher(Value a, Value b) noexcept { return _mm512_max_epi16(a, b); }
  static Value add(Value a, Value b) noexcept { return _mm512_add_epi16(a, b); }
  /// Integers in the order of the floating-point numbers: negated where the sign is set.
  static Value ordered(Value bits) noexcept {
    const Value sign = _mm512_srai_epi16(bits, 15);
    return _mm512_sub_epi16(_mm512_xor_si512(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return _mm512_cmpgt_epi16_mask(a, b); }
  static Mask equal(Value a, Value b) noexcept { return _mm512_cmpeq_epi16_mask(a, b); }
  static Mask is_zero(Value bits) noexcept { return _mm512_testn_epi16_mask(bits, fill(0x7fff)); }  // of either sign
  static bool any(Mask mask) noexcept { return mask != 0; }
  static std::int64_t count(Mask mask) noexcept { return _mm_popcnt_u32(mask); }
  /// Zero in the other lanes.
  static Value load_where(Mask mask, const void* from) noexcept { return _mm512_maskz_loadu_epi16(mask, from); }
  /// Subtracts 1 in the lanes of the mask.
  static Value decrement(Value sums, Mask mask) noexcept { return _mm512_mask_sub_epi16(sums, mask, sums, fill(1)); }
  /// How many lanes of up to 16384 masks are set.
  struct Counter {
    void add(Mask mask) noexcept { sum += count(mask); }
    std::int64_t total() const noexcept { return sum; }
    std::int64_t sum = 0;
  };

  /// Bytes that are not 0.
  static Mask of_bytes(const std::uint8_t* from) noexcept {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_test_epi8_mask(bytes, bytes);
  }
  /// The lanes of two masks as bytes, 1 and 0; and as bits.
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    _mm512_storeu_si512(to, _mm512_maskz_set1_epi8(_mm512_kunpackd(second, first), 1));
  }
  static std::uint64_t bits(Mask first, Mask second) noexcept { return _mm512_kunpackd(second, first); }

  /// Moves bytes within every 16 bytes.
  static Value shuffle(Value value, Value from) noexcept { return _mm512_shuffle_epi8(value, from); }
  /// Every block of 32 bytes rotated to the right by some bytes.
  template <int block, int bytes>
  static Value rotated(Value x) noexcept {
    static_assert(block == 32);
    const Value swapped = _mm512_permutex_epi64(x, 0x4e);  // the halves of each block
    return bytes < 16 ? _mm512_alignr_epi8(swapped, x, bytes % 16) : _mm512_alignr_epi8(x, swapped, bytes % 16);
  }
};

/// Lanes of 32 bits.
struct Lanes32 {
  using Bits = std::uint32_t;
  using Value = __m512i;
  using Mask = __mmask16;
  static constexpr std::int64_t kWidth = 16;
  static constexpr int kWidestBlock = 64;

  static Value load(const void* from) noexcept { return _mm512_loadu_si512(from); }
  static void store(void* to, Value value) noexcept { _mm512_storeu_si512(to, value); }
  static Value fill(int value) noexcept { return _mm512_set1_epi32(value); }
  static Value magnitude(Value bits) noexcept { return _mm512_and_si512(bits, fill(0x7fffffff)); }
  static Value higher(Value a, Value b) noexcept { return _mm512_max_epi32(a, b); }
  static Value add(Value a, Value b) noexcept { return _mm512_add_epi32(a, b); }
  static Value ordered(Value bits) noexcept {
    const Value sign = _mm512_srai_epi32(bits, 31);
    return _mm512_sub_epi32(_mm512_xor_si512(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return _mm512_cmpgt_epi32_mask(a, b); }
  static Mask is_zero(Value bits) noexcept { return _mm512_testn_epi32_mask(bits, fill(0x7fffffff)); }
  static bool any(Mask mask) noexcept { return mask != 0; }
  static std::int64_t count(Mask mask) noexcept { return _mm_popcnt_u32(mask); }
  static Value load_where(Mask mask, const void* from) noexcept { return _mm512_maskz_loadu_epi32(mask, from); }
  static Value decrement(Value sums, Mask mask) noexcept { return _mm512_mask_sub_epi32(sums, mask, sums, fill(1)); }
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    const __mmask32 both = _mm512_kunpackw(second, first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_set1_epi8(both, 1));
  }
  static Value shuffle(Value value, Value from) noexcept { return _mm512_shuffle_epi8(value, from); }
  template <int block, int bytes>
  static Value rotated(Value x) noexcept {
    if constexpr (block == 64) {
      return _mm512_alignr_epi32(x, x, bytes / 4);
    } else {
      return Lanes16::rotated<block, bytes>(x);
    }
  }

  /// The masks of the lower and the upper lanes of one of 16-bit lanes.
  static Mask low(Lanes16::Mask mask) noexcept { return static_cast<Mask>(mask); }
  static Mask high(Lanes16::Mask mask) noexcept { return static_cast<Mask>(mask >> kWidth); }

  /// float32 of other formats, and its products with float32 from memory.
  static Value of_f16(const std::uint16_t* from) noexcept {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castps_si512(_mm512_cvtph_ps(bits));
  }
  static Value of_bf16(const std::uint16_t* from) noexcept {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
  static Value times(Value bits, const float* factors) noexcept {
    return _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_loadu_ps(factors)));
  }
  /// The upper halves of both, in order.
  static Lanes16::Value upper_halves(Value first, Value second) noexcept {
    const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // packing works on 128 bits at a time
    const __m512i packed = _mm512_packus_epi32(_mm512_srli_epi32(first, 16), _mm512_srli_epi32(second, 16));
    return _mm512_permutexvar_epi64(in_order, packed);
  }
};

}  // namespace
}  // namespace stun_ext::detail
