// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "distance.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

constexpr int kGroup = 8;    // rows packed together, and float64 values in a register
constexpr int kGroupsB = 3;  // 24 sums, three vectors of b and one of a, of 32 registers

static_assert(kLanes == kGroup);

struct Product {
  static __m512d add(__m512d x, __m512d y, __m512d sum) noexcept { return _mm512_fmadd_pd(x, y, sum); }
};
struct Difference {
  static __m512d add(__m512d x, __m512d y, __m512d sum) noexcept {
    const __m512d d = _mm512_sub_pd(x, y);
    return _mm512_fmadd_pd(d, d, sum);
  }
};

template <class Term, int B>
inline void panels_of(const double* a, const double* b, std::int64_t depth, double* out, std::int64_t stride) noexcept {
  __m512d sum[kGroup][B];
  STUN_EXT_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) sum[i][v] = _mm512_setzero_pd();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __m512d y[B];
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) y[v] = _mm512_loadu_pd(b + (v * depth + k) * kGroup);
    STUN_EXT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const __m512d x = _mm512_set1_pd(a[k * kGroup + i]);
      STUN_EXT_UNROLL
      for (int v = 0; v < B; ++v) sum[i][v] = Term::add(x, y[v], sum[i][v]);
    }
  }
  STUN_EXT_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) {
      double* to = out + i * stride + v * kGroup;
      _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), sum[i][v]));
    }
  }
}

template <class Term>
void panels(const double* a, const double* b, std::int64_t count, std::int64_t depth, double* out,
            std::int64_t stride) noexcept {
  if (count == 3) return panels_of<Term, 3>(a, b, depth, out, stride);
  if (count == 2) return panels_of<Term, 2>(a, b, depth, out, stride);
  panels_of<Term, 1>(a, b, depth, out, stride);
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

// Eight columns, with zeros behind the last.
template <class Element>
inline __m512d load_rest(const typename Element::Stored* from, std::int64_t cols) noexcept {
  typename Element::Stored values[kLanes] = {};
  for (std::int64_t c = 0; c < cols; ++c) values[c] = from[c];
  return Element::load(values);
}

inline void add_lanes(__m512d lanes, double& sum) noexcept {
  double values[kLanes];
  _mm512_storeu_pd(values, lanes);
  double block = values[0];
  STUN_EXT_UNROLL
  for (int l = 1; l < kLanes; ++l) block += values[l];
  sum += block;
}

template <class Element>
void pair(const void* x_data, const void* y_data, std::int64_t cols, double* sums) noexcept {
  const auto* x = static_cast<const typename Element::Stored*>(x_data);
  const auto* y = static_cast<const typename Element::Stored*>(y_data);
  __m512d xx = _mm512_setzero_pd(), yy = xx, xy = xx, differences = xx;
  const auto add = [&](__m512d of_x, __m512d of_y) {
    xx = Product::add(of_x, of_x, xx);
    yy = Product::add(of_y, of_y, yy);
    xy = Product::add(of_x, of_y, xy);
    differences = Difference::add(of_x, of_y, differences);
  };
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) add(Element::load(x + c), Element::load(y + c));
  if (c < cols) add(load_rest<Element>(x + c, cols - c), load_rest<Element>(y + c, cols - c));
  add_lanes(xx, sums[0]);
  add_lanes(yy, sums[1]);
  add_lanes(xy, sums[2]);
  add_lanes(differences, sums[3]);
}

template <class Element, int B>
inline void products_with(const typename Element::Stored* x, const typename Element::Stored* const* y,
                          std::int64_t cols, double* sums) noexcept {
  __m512d xx = _mm512_setzero_pd(), xy[B], yy[B];
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) xy[j] = yy[j] = _mm512_setzero_pd();
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    const __m512d of_x = Element::load(x + c);
    xx = _mm512_fmadd_pd(of_x, of_x, xx);
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      const __m512d of_y = Element::load(y[j] + c);
      xy[j] = _mm512_fmadd_pd(of_x, of_y, xy[j]);
      yy[j] = _mm512_fmadd_pd(of_y, of_y, yy[j]);
    }
  }
  if (c < cols) {
    const __m512d of_x = load_rest<Element>(x + c, cols - c);
    xx = _mm512_fmadd_pd(of_x, of_x, xx);
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      const __m512d of_y = load_rest<Element>(y[j] + c, cols - c);
      xy[j] = _mm512_fmadd_pd(of_x, of_y, xy[j]);
      yy[j] = _mm512_fmadd_pd(of_y, of_y, yy[j]);
    }
  }
  add_lanes(xx, sums[0]);
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) {
    add_lanes(xy[j], sums[1 + 2 * j]);
    add_lanes(yy[j], sums[2 + 2 * j]);
  }
}

template <class Element, int B>
inline void differences_with(const typename Element::Stored* x, const typename Element::Stored* const* y,
                             std::int64_t cols, double* sums) noexcept {
  __m512d sum[B];
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) sum[j] = _mm512_setzero_pd();
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    const __m512d of_x = Element::load(x + c);
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      const __m512d d = _mm512_sub_pd(of_x, Element::load(y[j] + c));
      sum[j] = _mm512_fmadd_pd(d, d, sum[j]);
    }
  }
  if (c < cols) {
    const __m512d of_x = load_rest<Element>(x + c, cols - c);
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      const __m512d d = _mm512_sub_pd(of_x, load_rest<Element>(y[j] + c, cols - c));
      sum[j] = _mm512_fmadd_pd(d, d, sum[j]);
    }
  }
  STUN_EXT_UNROLL
  for (int j = 0; j < B; ++j) add_lanes(sum[j], sums[j]);
}

// Rows one by one where there are not kManyRows; x·x goes to sums[0] once.
template <class Element>
void products(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
              double* sums) noexcept {
  using Stored = typename Element::Stored;
  const auto* x = static_cast<const Stored*>(x_data);
  const Stored* y[kManyRows];
  for (std::int64_t j = 0; j < count; ++j) y[j] = static_cast<const Stored*>(y_data[j]);
  if (count == kManyRows) return products_with<Element, kManyRows>(x, y, cols, sums);
  const double before = sums[0];
  for (std::int64_t j = 0; j < count; ++j) {
    double of_pair[3] = {before, sums[1 + 2 * j], sums[2 + 2 * j]};
    products_with<Element, 1>(x, y + j, cols, of_pair);
    sums[0] = of_pair[0];
    sums[1 + 2 * j] = of_pair[1];
    sums[2 + 2 * j] = of_pair[2];
  }
}

template <class Element>
void differences(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
                 double* sums) noexcept {
  using Stored = typename Element::Stored;
  const auto* x = static_cast<const Stored*>(x_data);
  const Stored* y[kManyRows];
  for (std::int64_t j = 0; j < count; ++j) y[j] = static_cast<const Stored*>(y_data[j]);
  if (count == kManyRows) return differences_with<Element, kManyRows>(x, y, cols, sums);
  for (std::int64_t j = 0; j < count; ++j) differences_with<Element, 1>(x, y + j, cols, sums + j);
}

// From a vector for each of eight rows to one for each of eight columns.
inline void transpose(__m512d (&v)[kLanes]) noexcept {
  __m512d pairs[kLanes], quads[kLanes];
  STUN_EXT_UNROLL
  for (int r = 0; r < kLanes; r += 2) {  // columns 0 2 4 6 and 1 3 5 7 of two rows
    pairs[r] = _mm512_unpacklo_pd(v[r], v[r + 1]);
    pairs[r + 1] = _mm512_unpackhi_pd(v[r], v[r + 1]);
  }
  STUN_EXT_UNROLL
  for (int r = 0; r < kLanes; r += 4) {  // quads[r + c]: columns c and c + 4 of four rows, by two rows
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

template <class Element>
void pack(const void* const* rows, std::int64_t count, std::int64_t cols, double* to,
          std::int64_t lane_stride) noexcept {
  using Stored = typename Element::Stored;
  for (std::int64_t c = 0; c < cols; c += kLanes) {
    __m512d v[kLanes];
    if (count == kGroup && c + kLanes <= cols) {
      STUN_EXT_UNROLL
      for (int r = 0; r < kGroup; ++r) v[r] = Element::load(static_cast<const Stored*>(rows[r]) + c);
    } else {
      const std::int64_t some = cols - c < kLanes ? cols - c : kLanes;
      STUN_EXT_UNROLL
      for (int r = 0; r < kGroup; ++r) {
        v[r] = r < count ? load_rest<Element>(static_cast<const Stored*>(rows[r]) + c, some) : _mm512_setzero_pd();
      }
    }
    transpose(v);
    STUN_EXT_UNROLL
    for (int l = 0; l < kLanes; ++l) _mm512_storeu_pd(to + l * lane_stride + c, v[l]);  // c / kLanes · kGroup is c
  }
}

template <class Element>
constexpr RowKernels row_kernels() noexcept {
  return {pair<Element>, products<Element>, differences<Element>, pack<Element>};
}

}  // namespace

const DistanceKernels distance_avx512 = {kGroup,
                                         kGroupsB,
                                         panels<Product>,
                                         panels<Product>,
                                         panels<Difference>,
                                         row_kernels<F32>(),
                                         row_kernels<BF16>(),
                                         row_kernels<F16>(),
                                         row_kernels<F64>()};

}  // namespace stun_ext::detail
