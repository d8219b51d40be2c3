// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "distance_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = __m512d;
  static constexpr int kWidth = 8;
  static Value fill(double value) noexcept { return _mm512_set1_pd(value); }
  static Value multiply_add(Value x, Value y, Value sum) noexcept { return _mm512_fmadd_pd(x, y, sum); }
  static void store(double* to, Value value) noexcept { _mm512_storeu_pd(to, value); }
  static Value load(const double* from) noexcept { return _mm512_loadu_pd(from); }
  static Value load(const float* from) noexcept { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
  static Value load(const BFloat16Bits* from) noexcept {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
  static Value load(const Float16Bits* from) noexcept {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  /// From a vector for each of eight rows to one for each of eight columns.
  static void transpose(Value (&v)[kWidth]) noexcept {
    Value pairs[kWidth], quads[kWidth];
    STUN_EXT_UNROLL
    for (int r = 0; r < kWidth; r += 2) {  // columns 0 2 4 6 and 1 3 5 7 of two rows
      pairs[r] = _mm512_unpacklo_pd(v[r], v[r + 1]);
      pairs[r + 1] = _mm512_unpackhi_pd(v[r], v[r + 1]);
    }
    STUN_EXT_UNROLL
    for (int r = 0; r < kWidth; r += 4) {  // quads[r + c]: columns c and c + 4 of four rows, by two rows
      STUN_EXT_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        quads[r + odd] = _mm512_shuffle_f64x2(pairs[r + odd], pairs[r + 2 + odd], _MM_SHUFFLE(2, 0, 2, 0));
        quads[r + 2 + odd] = _mm512_shuffle_f64x2(pairs[r + odd], pairs[r + 2 + odd], _MM_SHUFFLE(3, 1, 3, 1));
      }
    }
    STUN_EXT_UNROLL
    for (int c = 0; c < 4; ++c) {
      v[c] = _mm512_shuffle_f64x2(quads[c], quads[4 + c], _MM_SHUFFLE(2, 0, 2, 0));
      v[c + 4] = _mm512_shuffle_f64x2(quads[c], quads[4 + c], _MM_SHUFFLE(3, 1, 3, 1));
    }
  }
};

}  // namespace

const DistanceKernels distance_avx512 = DistanceLanes<Lanes>::kernels();

}  // namespace stun_ext::detail
