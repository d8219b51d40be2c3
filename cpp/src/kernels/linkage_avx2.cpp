// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "linkage_lanes.hpp"
#include "squeeze.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = __m256d;
  using Mask = __m256d;
  static constexpr std::int64_t kWidth = 4;
  static Value fill(double value) noexcept { return _mm256_set1_pd(value); }
  static Value places() noexcept { return _mm256_setr_pd(0, 1, 2, 3); }
  static Value load(const double* from) noexcept { return _mm256_loadu_pd(from); }
  static void store(double* to, Value value) noexcept { _mm256_storeu_pd(to, value); }
  static Value lower(Value a, Value b) noexcept { return _mm256_min_pd(b, a); }   // the second if neither is less
  static Value higher(Value a, Value b) noexcept { return _mm256_max_pd(b, a); }  // the second if neither is more
  static Value root(Value value) noexcept { return _mm256_sqrt_pd(value); }
  static Value reciprocal(Value value) noexcept { return fill(1.0) / value; }
  static double lowest_lane(Value value) noexcept {
    const __m128d half = _mm_min_pd(_mm256_castpd256_pd128(value), _mm256_extractf128_pd(value, 1));
    return _mm_cvtsd_f64(_mm_min_sd(half, _mm_unpackhi_pd(half, half)));
  }
  static Mask is_less(Value a, Value b) noexcept { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
  static Mask is_equal(Value a, Value b) noexcept { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
  static Mask exceeds(Value value, Value limit) noexcept {
    return _mm256_cmp_pd(_mm256_andnot_pd(_mm256_set1_pd(-0.0), value), limit, _CMP_NLE_UQ);
  }
  static Value select(Mask mask, Value yes, Value no) noexcept { return _mm256_blendv_pd(no, yes, mask); }
  static Mask either(Mask a, Mask b) noexcept { return _mm256_or_pd(a, b); }
  static bool any(Mask mask) noexcept { return _mm256_movemask_pd(mask) != 0; }
};

void store(double* to, __m256d value) noexcept { _mm256_store_pd(to, value); }
void stream(double* to, __m256d value) noexcept { _mm256_stream_pd(to, value); }

/// Rows 0…3 of four columns become their columns.
template <void (*put)(double*, __m256d) noexcept>
void transpose(const double* const* from, std::int64_t i, double* const* to, std::int64_t column) noexcept {
  const __m256d a = _mm256_load_pd(from[0] + i), b = _mm256_load_pd(from[1] + i);
  const __m256d c = _mm256_load_pd(from[2] + i), d = _mm256_load_pd(from[3] + i);
  const __m256d ab_even = _mm256_unpacklo_pd(a, b), ab_odd = _mm256_unpackhi_pd(a, b);
  const __m256d cd_even = _mm256_unpacklo_pd(c, d), cd_odd = _mm256_unpackhi_pd(c, d);
  put(to[i] + column, _mm256_permute2f128_pd(ab_even, cd_even, 0x20));
  put(to[i + 1] + column, _mm256_permute2f128_pd(ab_odd, cd_odd, 0x20));
  put(to[i + 2] + column, _mm256_permute2f128_pd(ab_even, cd_even, 0x31));
  put(to[i + 3] + column, _mm256_permute2f128_pd(ab_odd, cd_odd, 0x31));
}

void mirror(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
            double* const* to) noexcept {
  for (std::int64_t i = begin; i < end; i += Lanes::kWidth) {
    transpose<store>(from, i, to, column);
    transpose<store>(from + Lanes::kWidth, i, to, column + Lanes::kWidth);
  }
}

void mirror_streaming(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
                      double* const* to) noexcept {
  for (std::int64_t i = begin; i < end; i += Lanes::kWidth) {
    transpose<stream>(from, i, to, column);
    transpose<stream>(from + Lanes::kWidth, i, to, column + Lanes::kWidth);
  }
  _mm_sfence();  // before another thread is told
}

}  // namespace

const LinkageKernels linkage_avx2 = LinkageLanes<Lanes>::kernels(mirror, mirror_streaming, squeeze_by_bits);

}  // namespace stun_ext::detail
