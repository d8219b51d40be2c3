// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "distance.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

constexpr int kWidth = 8;  // all lanes
constexpr int kHalves = static_cast<int>(kLanes) / kWidth;

// Rows of each side at once: 25 sums, five vectors of a, one of b and a difference: all 32 registers.
constexpr int kBlock = 5;

// Rows of b that all of a go by before the next ones: they stay in the first cache.
constexpr std::int64_t kNearRows = 15;

template <int A, int B>
inline void block(const double* a, std::int64_t a_stride, const double* b, std::int64_t b_stride, std::int64_t cols,
                  double* lanes, std::int64_t lanes_stride) noexcept {
  {
    constexpr int offset = 0;
    __m512d sum[A][B];
    STUN_EXT_UNROLL
    for (int i = 0; i < A; ++i) {
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) sum[i][j] = _mm512_loadu_pd(lanes + i * lanes_stride + j * kLanes + offset);
    }
    for (std::int64_t c = offset; c < cols; c += kLanes) {
      __m512d x[A];
      STUN_EXT_UNROLL
      for (int i = 0; i < A; ++i) x[i] = _mm512_loadu_pd(a + i * a_stride + c);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m512d y = _mm512_loadu_pd(b + j * b_stride + c);
        STUN_EXT_UNROLL
        for (int i = 0; i < A; ++i) {
          const __m512d d = _mm512_sub_pd(x[i], y);
          sum[i][j] = _mm512_fmadd_pd(d, d, sum[i][j]);
        }
      }
    }
    STUN_EXT_UNROLL
    for (int i = 0; i < A; ++i) {
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) _mm512_storeu_pd(lanes + i * lanes_stride + j * kLanes + offset, sum[i][j]);
    }
  }
}

template <int A, int B>
inline void last_columns(const double* a, std::int64_t a_stride, const double* b, std::int64_t b_rows,
                         std::int64_t b_stride, std::int64_t cols, double* lanes, std::int64_t lanes_stride) noexcept {
  if constexpr (B > 0) {
    if (b_rows == B) return block<A, B>(a, a_stride, b, b_stride, cols, lanes, lanes_stride);
    last_columns<A, B - 1>(a, a_stride, b, b_rows, b_stride, cols, lanes, lanes_stride);
  }
}

template <int A>
inline void rows_of_a(const double* a, std::int64_t a_stride, const double* b, std::int64_t b_rows,
                      std::int64_t b_stride, std::int64_t cols, double* lanes, std::int64_t lanes_stride) noexcept {
  std::int64_t j = 0;
  for (; j + kBlock <= b_rows; j += kBlock) {
    block<A, kBlock>(a, a_stride, b + j * b_stride, b_stride, cols, lanes + j * kLanes, lanes_stride);
  }
  last_columns<A, kBlock - 1>(a, a_stride, b + j * b_stride, b_rows - j, b_stride, cols, lanes + j * kLanes,
                              lanes_stride);
}

template <int A>
inline void last_rows(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b, std::int64_t b_rows,
                      std::int64_t b_stride, std::int64_t cols, double* lanes, std::int64_t lanes_stride) noexcept {
  if constexpr (A > 0) {
    if (a_rows == A) return rows_of_a<A>(a, a_stride, b, b_rows, b_stride, cols, lanes, lanes_stride);
    last_rows<A - 1>(a, a_rows, a_stride, b, b_rows, b_stride, cols, lanes, lanes_stride);
  }
}

void squared_differences(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                         std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols, double* lanes) noexcept {
  const std::int64_t lanes_stride = b_rows * kLanes;
  for (std::int64_t j = 0; j < b_rows; j += kNearRows) {
    const std::int64_t near = b_rows - j < kNearRows ? b_rows - j : kNearRows;
    const double* near_b = b + j * b_stride;
    double* to = lanes + j * kLanes;
    std::int64_t i = 0;
    for (; i + kBlock <= a_rows; i += kBlock) {
      rows_of_a<kBlock>(a + i * a_stride, a_stride, near_b, near, b_stride, cols, to + i * lanes_stride, lanes_stride);
    }
    last_rows<kBlock - 1>(a + i * a_stride, a_rows - i, a_stride, near_b, near, b_stride, cols, to + i * lanes_stride,
                          lanes_stride);
  }
}

struct F32 {
  using Stored = float;
  static __m512d load(const float* from) noexcept { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
};
struct F64 {
  using Stored = double;
  static __m512d load(const double* from) noexcept { return _mm512_loadu_pd(from); }
};
struct BF16 {
  using Stored = std::uint16_t;
  static __m512d load(const std::uint16_t* from) noexcept {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
};
struct F16 {
  using Stored = std::uint16_t;
  static __m512d load(const std::uint16_t* from) noexcept {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
};

template <class Element, int B>
inline void row_with(const typename Element::Stored* a, const typename Element::Stored* const* b, std::int64_t cols,
                     double* lanes) noexcept {
  __m512d sum[B][kHalves];
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) {
    STUN_EXT_UNROLL
    for (int half = 0; half < kHalves; ++half) sum[j][half] = _mm512_setzero_pd();
  }
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    STUN_EXT_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      const __m512d x = Element::load(a + c + half * kWidth);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m512d d = _mm512_sub_pd(x, Element::load(b[j] + c + half * kWidth));
        sum[j][half] = _mm512_fmadd_pd(d, d, sum[j][half]);
      }
    }
  }
  if (c < cols) {  // the rest, beside zeros
    typename Element::Stored x[kLanes] = {}, y[kLanes] = {};
    for (std::int64_t k = 0; k < cols - c; ++k) x[k] = a[c + k];
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      for (std::int64_t k = 0; k < cols - c; ++k) y[k] = b[j][c + k];
      STUN_EXT_UNROLL
      for (int half = 0; half < kHalves; ++half) {
        const __m512d d = _mm512_sub_pd(Element::load(x + half * kWidth), Element::load(y + half * kWidth));
        sum[j][half] = _mm512_fmadd_pd(d, d, sum[j][half]);
      }
    }
  }
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) {
    STUN_EXT_UNROLL
    for (int half = 0; half < kHalves; ++half) _mm512_storeu_pd(lanes + j * kLanes + half * kWidth, sum[j][half]);
  }
}

template <class Element>
void row_with_rows(const typename Element::Stored* a, const typename Element::Stored* const* b, std::int64_t count,
                   std::int64_t cols, double* lanes) noexcept {
  if (count == kManyRows) return row_with<Element, kManyRows>(a, b, cols, lanes);
  for (std::int64_t j = 0; j < count; ++j) row_with<Element, 1>(a, b + j, cols, lanes + j * kLanes);
}

template <class Element>
void widen(const typename Element::Stored* from, std::int64_t count, double* to) noexcept {
  std::int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) _mm512_storeu_pd(to + c, Element::load(from + c));
  if (c < count) {
    typename Element::Stored rest[kWidth] = {};
    for (std::int64_t k = 0; k < count - c; ++k) rest[k] = from[c + k];
    double values[kWidth];
    _mm512_storeu_pd(values, Element::load(rest));
    for (std::int64_t k = 0; k < count - c; ++k) to[c + k] = values[k];
  }
}

}  // namespace

const DistanceKernels distance_avx512 = {squared_differences, row_with_rows<F32>, row_with_rows<BF16>,
                                         row_with_rows<F16>,  row_with_rows<F64>, widen<F32>,
                                         widen<BF16>,         widen<F16>};

}  // namespace stun_ext::detail
