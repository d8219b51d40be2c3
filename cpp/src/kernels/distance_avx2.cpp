// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "distance_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = __m256d;
  static constexpr int kWidth = 4;
  static Value fill(double value) noexcept { return _mm256_set1_pd(value); }
  static Value multiply_add(Value x, Value y, Value sum) noexcept { return _mm256_fmadd_pd(x, y, sum); }
  static void store(double* to, Value value) noexcept { _mm256_storeu_pd(to, value); }
  static Value load(const double* from) noexcept { return _mm256_loadu_pd(from); }
  static Value load(const float* from) noexcept { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
  static Value load(const BFloat16Bits* from) noexcept {
    const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
  }
  static Value load(const Float16Bits* from) noexcept {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }

  /// From a vector for each of four rows to one for each of four columns.
  static void transpose(Value (&v)[kWidth]) noexcept {
    const Value low0 = _mm256_unpacklo_pd(v[0], v[1]), high0 = _mm256_unpackhi_pd(v[0], v[1]);
    const Value low1 = _mm256_unpacklo_pd(v[2], v[3]), high1 = _mm256_unpackhi_pd(v[2], v[3]);
    v[0] = _mm256_permute2f128_pd(low0, low1, 0x20);
    v[1] = _mm256_permute2f128_pd(high0, high1, 0x20);
    v[2] = _mm256_permute2f128_pd(low0, low1, 0x31);
    v[3] = _mm256_permute2f128_pd(high0, high1, 0x31);
  }
};

}  // namespace

const DistanceKernels distance_avx2 = DistanceLanes<Lanes>::kernels();

}  // namespace stun_ext::detail
