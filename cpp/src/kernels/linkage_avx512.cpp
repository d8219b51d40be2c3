// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "linkage_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = __m512d;
  using Mask = __mmask8;
  static constexpr std::int64_t kWidth = 8;
  static Value fill(double value) noexcept { return _mm512_set1_pd(value); }
  static Value places() noexcept { return _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7); }
  static Value load(const double* from) noexcept { return _mm512_loadu_pd(from); }
  static void store(double* to, Value value) noexcept { _mm512_storeu_pd(to, value); }
  static Value lower(Value a, Value b) noexcept { return _mm512_min_pd(b, a); }   // the second if neither is less
  static Value higher(Value a, Value b) noexcept { return _mm512_max_pd(b, a); }  // the second if neither is more
  static Value root(Value value) noexcept { return _mm512_sqrt_pd(value); }
  /// Division waits for the unit that takes the roots. After two steps of Newton the error is below one unit in the
  /// last place, and a last one with a fused remainder rounds correctly (Markstein 1990), but for values whose 53 bits
  /// are all set: sizes of clusters are smaller.
  static Value reciprocal(Value value) noexcept {
    Value guess = _mm512_rcp14_pd(value);
    STUN_EXT_UNROLL
    for (int step = 0; step < 3; ++step) {
      guess = _mm512_fmadd_pd(guess, _mm512_fnmadd_pd(value, guess, fill(1.0)), guess);
    }
    return guess;
  }
  static double lowest_lane(Value value) noexcept { return _mm512_reduce_min_pd(value); }
  static Mask is_less(Value a, Value b) noexcept { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
  static Mask is_equal(Value a, Value b) noexcept { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  static Mask exceeds(Value value, Value limit) noexcept {
    return _mm512_cmp_pd_mask(_mm512_abs_pd(value), limit, _CMP_NLE_UQ);
  }
  static Value select(Mask mask, Value yes, Value no) noexcept { return _mm512_mask_blend_pd(mask, no, yes); }
  static Mask either(Mask a, Mask b) noexcept { return static_cast<Mask>(a | b); }
  static bool any(Mask mask) noexcept { return mask != 0; }
};

void store(double* to, __m512d value) noexcept { _mm512_store_pd(to, value); }
void stream(double* to, __m512d value) noexcept { _mm512_stream_pd(to, value); }

template <void (*put)(double*, __m512d) noexcept>
void transpose(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
               double* const* to) noexcept {
  for (std::int64_t i = begin; i < end; i += Lanes::kWidth) {
    __m512d row[8], pair[8], four[8];
    STUN_EXT_UNROLL
    for (int w = 0; w < 8; ++w) row[w] = _mm512_load_pd(from[w] + i);
    STUN_EXT_UNROLL
    for (int w = 0; w < 8; w += 2) {  // columns 0, 2, 4, 6 and 1, 3, 5, 7 of two rows
      pair[w] = _mm512_unpacklo_pd(row[w], row[w + 1]);
      pair[w + 1] = _mm512_unpackhi_pd(row[w], row[w + 1]);
    }
    STUN_EXT_UNROLL
    for (int w = 0; w < 8; w += 4) {
      STUN_EXT_UNROLL
      for (int odd = 0; odd < 2; ++odd) {  // of four rows: columns 0 and 4, then 2 and 6
        four[w + odd] = _mm512_shuffle_f64x2(pair[w + odd], pair[w + odd + 2], 0x88);
        four[w + odd + 2] = _mm512_shuffle_f64x2(pair[w + odd], pair[w + odd + 2], 0xdd);
      }
    }
    STUN_EXT_UNROLL
    for (int w = 0; w < 4; ++w) {
      put(to[i + w] + column, _mm512_shuffle_f64x2(four[w], four[w + 4], 0x88));
      put(to[i + w + 4] + column, _mm512_shuffle_f64x2(four[w], four[w + 4], 0xdd));
    }
  }
}

void mirror(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
            double* const* to) noexcept {
  transpose<store>(from, begin, end, column, to);
}

void mirror_streaming(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
                      double* const* to) noexcept {
  transpose<stream>(from, begin, end, column, to);
  _mm_sfence();  // before another thread is told
}

void squeeze(double* row, const std::uint8_t* kept, std::int64_t count) noexcept {
  double* to = row;
  for (std::int64_t k = 0; k < count; k += Lanes::kWidth) {
    const std::uint8_t bits = kept[k / Lanes::kWidth];
    // What is stored beyond the kept ones has been read, or is read no more.
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(bits, _mm512_loadu_pd(row + k)));
    to += __builtin_popcount(bits);
  }
}

}  // namespace

const LinkageKernels linkage_avx512 = LinkageLanes<Lanes>::kernels(mirror, mirror_streaming, squeeze);

}  // namespace stun_ext::detail
