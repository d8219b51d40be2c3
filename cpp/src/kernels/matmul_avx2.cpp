// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "matmul_lanes.hpp"

namespace stun_ext::detail {
namespace {

/// For every 8 bits of a mask, where each column finds its value: -1 where it has none. 2 KB.
struct Places {
  alignas(64) std::int8_t of[256][8];
  constexpr Places() noexcept : of() {
    for (int mask = 0; mask < 256; ++mask) {
      std::int8_t next = 0;
      for (int c = 0; c < 8; ++c) of[mask][c] = (mask >> c & 1) != 0 ? next++ : std::int8_t{-1};
    }
  }
};
constexpr Places kPlaces;

/// The same as bytes of 2-byte elements, for _mm_shuffle_epi8, which makes 0 of numbers with the highest bit. 4 KB.
struct Bytes {
  alignas(64) std::uint8_t of[256][16];
  constexpr Bytes() noexcept : of() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int c = 0; c < 8; ++c) {
        const int place = kPlaces.of[mask][c];
        of[mask][2 * c] = static_cast<std::uint8_t>(place < 0 ? 0x80 : 2 * place);
        of[mask][2 * c + 1] = static_cast<std::uint8_t>(place < 0 ? 0x80 : 2 * place + 1);
      }
    }
  }
};
constexpr Bytes kBytes;

struct F32 {
  using Stored = float;
  static __m256 load(const float* from) noexcept { return _mm256_loadu_ps(from); }
  static __m256 spread(std::uint32_t mask, const float* from) noexcept {
    const __m256i places = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[mask])));
    const __m256 values = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), places);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(places, 31)), values);
  }
};
struct Halves {
  using Stored = std::uint16_t;
  static __m128i read(const std::uint16_t* from) noexcept {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static __m128i read(std::uint32_t mask, const std::uint16_t* from) noexcept {
    return _mm_shuffle_epi8(read(from), _mm_load_si128(reinterpret_cast<const __m128i*>(kBytes.of[mask])));
  }
};
struct F16 : Halves {
  static __m256 load(const std::uint16_t* from) noexcept { return _mm256_cvtph_ps(read(from)); }
  static __m256 spread(std::uint32_t mask, const std::uint16_t* from) noexcept {
    return _mm256_cvtph_ps(read(mask, from));
  }
};
struct BF16 : Halves {
  static __m256 widen(__m128i bits) noexcept {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m256 load(const std::uint16_t* from) noexcept { return widen(read(from)); }
  static __m256 spread(std::uint32_t mask, const std::uint16_t* from) noexcept { return widen(read(mask, from)); }
};

/// 8 columns to a vector of float32.
template <class Element>
struct Lanes {
  using Stored = typename Element::Stored;
  using X = float;
  using Spread = float;
  using Vector = __m256;
  using Sum = __m256;
  static constexpr int kVectors = 4;
  static constexpr int kTokens = 2;
  static void expand(std::uint32_t mask, const Stored* from, __m256* out) noexcept {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const std::uint32_t bits = mask >> (8 * v) & 0xffu;
      out[v] = Element::spread(bits, from);
      from += _mm_popcnt_u32(bits);
    }
  }
  static void load(const Stored* from, __m256* out) noexcept {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectors; ++v) out[v] = Element::load(from + 8 * v);
  }
  static void store(const __m256* v, float* to) noexcept {
    STUN_EXT_UNROLL
    for (int i = 0; i < kVectors; ++i) _mm256_store_ps(to + 8 * i, v[i]);
  }
  static __m256 load_spread(const float* from) noexcept { return _mm256_load_ps(from); }
  static __m256 zero() noexcept { return _mm256_setzero_ps(); }
  static __m256 dot(__m256 sum, __m256 weights, const float* x) noexcept {
    return _mm256_fmadd_ps(weights, _mm256_loadu_ps(x), sum);
  }
  static float total(__m256 sum) noexcept {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
};

}  // namespace

const MatmulKernels matmul_avx2 = {MatmulLanes<Lanes<F32>>::multiply, MatmulLanes<Lanes<F16>>::multiply,
                                   MatmulLanes<Lanes<BF16>>::multiply};

}  // namespace stun_ext::detail
