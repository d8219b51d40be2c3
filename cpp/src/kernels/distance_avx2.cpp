// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "distance.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

constexpr int kGroup = 4;    // rows packed together, and float64 values in a register
constexpr int kGroupsB = 3;  // twelve sums, three vectors of b and one of a: sixteen registers
constexpr int kHalves = 2;   // of the lanes, one after the other: together they would leave room for few rows

static_assert(kLanes == kGroup * kHalves);

struct Product {
  static __m256d add(__m256d x, __m256d y, __m256d sum) noexcept { return _mm256_fmadd_pd(x, y, sum); }
};
struct Difference {
  static __m256d add(__m256d x, __m256d y, __m256d sum) noexcept {
    const __m256d d = _mm256_sub_pd(x, y);
    return _mm256_fmadd_pd(d, d, sum);
  }
};

template <class Term, int B>
inline void panels_of(const double* a, const double* b, std::int64_t depth, double* out, std::int64_t stride) noexcept {
  __m256d sum[kGroup][B];
  STUN_EXT_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) sum[i][v] = _mm256_setzero_pd();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __m256d y[B];
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) y[v] = _mm256_loadu_pd(b + (v * depth + k) * kGroup);
    STUN_EXT_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const __m256d x = _mm256_set1_pd(a[k * kGroup + i]);
      STUN_EXT_UNROLL
      for (int v = 0; v < B; ++v) sum[i][v] = Term::add(x, y[v], sum[i][v]);
    }
  }
  STUN_EXT_UNROLL
  for (int i = 0; i < kGroup; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < B; ++v) {
      double* to = out + i * stride + v * kGroup;
      _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), sum[i][v]));
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
  static __m256d load(const float* from) noexcept { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
};
struct F64 {
  using Stored = double;
  static __m256d load(const double* from) noexcept { return _mm256_loadu_pd(from); }
};
struct BF16 {
  using Stored = std::uint16_t;
  static __m256d load(const std::uint16_t* from) noexcept {
    const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
  }
};
struct F16 {
  using Stored = std::uint16_t;
  static __m256d load(const std::uint16_t* from) noexcept {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
};

// Half of the lanes' columns, with zeros behind the last.
template <class Element>
inline __m256d load_rest(const typename Element::Stored* from, std::int64_t cols) noexcept {
  typename Element::Stored values[kGroup] = {};
  for (std::int64_t c = 0; c < cols && c < kGroup; ++c) values[c] = from[c];
  return Element::load(values);
}

inline void add_lanes(__m256d lanes, double& sum) noexcept {
  double values[kGroup];
  _mm256_storeu_pd(values, lanes);
  STUN_EXT_UNROLL
  for (int l = 0; l < kGroup; ++l) sum += values[l];
}

template <class Element>
void pair(const void* x_data, const void* y_data, std::int64_t cols, double* sums) noexcept {
  const auto* x = static_cast<const typename Element::Stored*>(x_data);
  const auto* y = static_cast<const typename Element::Stored*>(y_data);
  __m256d lanes[4][kHalves];  // here both halves at once: there is room
  STUN_EXT_UNROLL
  for (int k = 0; k < 4; ++k) lanes[k][0] = lanes[k][1] = _mm256_setzero_pd();
  const auto add = [&](int half, __m256d of_x, __m256d of_y) {
    lanes[0][half] = Product::add(of_x, of_x, lanes[0][half]);
    lanes[1][half] = Product::add(of_y, of_y, lanes[1][half]);
    lanes[2][half] = Product::add(of_x, of_y, lanes[2][half]);
    lanes[3][half] = Difference::add(of_x, of_y, lanes[3][half]);
  };
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    add(0, Element::load(x + c), Element::load(y + c));
    add(1, Element::load(x + c + kGroup), Element::load(y + c + kGroup));
  }
  STUN_EXT_UNROLL
  for (int half = 0; half < kHalves; ++half, c += kGroup) {
    if (c < cols) add(half, load_rest<Element>(x + c, cols - c), load_rest<Element>(y + c, cols - c));
  }
  STUN_EXT_UNROLL
  for (int k = 0; k < 4; ++k) {
    double block = 0.0;
    add_lanes(lanes[k][0], block);
    add_lanes(lanes[k][1], block);
    sums[k] += block;
  }
}

template <class Element, int B>
inline void products_with(const typename Element::Stored* x, const typename Element::Stored* const* y,
                          std::int64_t cols, double* sums) noexcept {
  double block[1 + 2 * B] = {};
  for (std::int64_t half = 0; half < kLanes; half += kGroup) {
    __m256d xx = _mm256_setzero_pd(), xy[B], yy[B];
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) xy[j] = yy[j] = _mm256_setzero_pd();
    std::int64_t c = half;
    for (; c + kGroup <= cols; c += kLanes) {
      const __m256d of_x = Element::load(x + c);
      xx = _mm256_fmadd_pd(of_x, of_x, xx);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m256d of_y = Element::load(y[j] + c);
        xy[j] = _mm256_fmadd_pd(of_x, of_y, xy[j]);
        yy[j] = _mm256_fmadd_pd(of_y, of_y, yy[j]);
      }
    }
    if (c < cols) {
      const __m256d of_x = load_rest<Element>(x + c, cols - c);
      xx = _mm256_fmadd_pd(of_x, of_x, xx);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m256d of_y = load_rest<Element>(y[j] + c, cols - c);
        xy[j] = _mm256_fmadd_pd(of_x, of_y, xy[j]);
        yy[j] = _mm256_fmadd_pd(of_y, of_y, yy[j]);
      }
    }
    add_lanes(xx, block[0]);
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) {
      add_lanes(xy[j], block[1 + 2 * j]);
      add_lanes(yy[j], block[2 + 2 * j]);
    }
  }
  for (int k = 0; k < 1 + 2 * B; ++k) sums[k] += block[k];
}

template <class Element, int B>
inline void differences_with(const typename Element::Stored* x, const typename Element::Stored* const* y,
                             std::int64_t cols, double* sums) noexcept {
  double block[1 + 2 * B] = {};
  for (std::int64_t half = 0; half < kLanes; half += kGroup) {
    __m256d sum[B];
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) sum[j] = _mm256_setzero_pd();
    std::int64_t c = half;
    for (; c + kGroup <= cols; c += kLanes) {
      const __m256d of_x = Element::load(x + c);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m256d d = _mm256_sub_pd(of_x, Element::load(y[j] + c));
        sum[j] = _mm256_fmadd_pd(d, d, sum[j]);
      }
    }
    if (c < cols) {
      const __m256d of_x = load_rest<Element>(x + c, cols - c);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        const __m256d d = _mm256_sub_pd(of_x, load_rest<Element>(y[j] + c, cols - c));
        sum[j] = _mm256_fmadd_pd(d, d, sum[j]);
      }
    }
    STUN_EXT_UNROLL
    for (int j = 0; j < B; ++j) add_lanes(sum[j], block[j]);
  }
  for (int j = 0; j < B; ++j) sums[j] += block[j];
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

// From a vector for each of four rows to one for each of four columns.
inline void transpose(__m256d (&v)[kGroup]) noexcept {
  const __m256d low0 = _mm256_unpacklo_pd(v[0], v[1]), high0 = _mm256_unpackhi_pd(v[0], v[1]);
  const __m256d low1 = _mm256_unpacklo_pd(v[2], v[3]), high1 = _mm256_unpackhi_pd(v[2], v[3]);
  v[0] = _mm256_permute2f128_pd(low0, low1, 0x20);
  v[1] = _mm256_permute2f128_pd(high0, high1, 0x20);
  v[2] = _mm256_permute2f128_pd(low0, low1, 0x31);
  v[3] = _mm256_permute2f128_pd(high0, high1, 0x31);
}

template <class Element>
void pack(const void* const* rows, std::int64_t count, std::int64_t cols, double* to,
          std::int64_t lane_stride) noexcept {
  using Stored = typename Element::Stored;
  const std::int64_t padded = (cols + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t c = 0; c < padded; c += kGroup) {
    __m256d v[kGroup];
    if (count == kGroup && c + kGroup <= cols) {
      STUN_EXT_UNROLL
      for (int r = 0; r < kGroup; ++r) v[r] = Element::load(static_cast<const Stored*>(rows[r]) + c);
    } else {
      STUN_EXT_UNROLL
      for (int r = 0; r < kGroup; ++r) {
        v[r] = r < count ? load_rest<Element>(static_cast<const Stored*>(rows[r]) + c, cols - c) : _mm256_setzero_pd();
      }
    }
    transpose(v);
    double* first = to + c % kLanes * lane_stride + c / kLanes * kGroup;
    STUN_EXT_UNROLL
    for (int l = 0; l < kGroup; ++l) _mm256_storeu_pd(first + l * lane_stride, v[l]);
  }
}

template <class Element>
constexpr RowKernels row_kernels() noexcept {
  return {pair<Element>, products<Element>, differences<Element>, pack<Element>};
}

}  // namespace

const DistanceKernels distance_avx2 = {kGroup,
                                       kGroupsB,
                                       panels<Product>,
                                       panels<Product>,
                                       panels<Difference>,
                                       row_kernels<F32>(),
                                       row_kernels<BF16>(),
                                       row_kernels<F16>(),
                                       row_kernels<F64>()};

}  // namespace stun_ext::detail
