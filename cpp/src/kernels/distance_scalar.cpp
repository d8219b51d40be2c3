// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <type_traits>

#include "../load.hpp"
#include "distance.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kGroup = 4;
constexpr std::int64_t kGroupsB = 1;

// What std::fma gives. Where a processor lacks the instruction that is slow; a product of two float32, float16 or
// bfloat16 values is exact in float64, so that the sum alone rounds without it too.
template <bool is_exact>
double multiply_add(double x, double y, double sum) noexcept {
  if constexpr (is_exact) return x * y + sum;
  return std::fma(x, y, sum);
}

template <bool is_exact>
struct Product {
  static double add(double x, double y, double sum) noexcept { return multiply_add<is_exact>(x, y, sum); }
};
struct Difference {
  static double add(double x, double y, double sum) noexcept { return std::fma(x - y, x - y, sum); }
};

template <class Term>
void panels(const double* a, const double* b, std::int64_t count, std::int64_t depth, bool is_first, double* out,
            std::int64_t stride) noexcept {
  for (std::int64_t group = 0; group < count; ++group, b += depth * kGroup, out += kGroup) {
    double sum[kGroup][kGroup] = {};
    for (std::int64_t k = 0; k < depth; ++k) {
      for (std::int64_t i = 0; i < kGroup; ++i) {
        for (std::int64_t j = 0; j < kGroup; ++j) {
          sum[i][j] = Term::add(a[k * kGroup + i], b[k * kGroup + j], sum[i][j]);
        }
      }
    }
    for (std::int64_t i = 0; i < kGroup; ++i) {
      for (std::int64_t j = 0; j < kGroup; ++j) {
        double& to = out[i * stride + j];
        to = is_first ? sum[i][j] : to + sum[i][j];
      }
    }
  }
}

template <class Element>
double as_double(const Element& value) noexcept {
  return static_cast<double>(to_float(value));
}
double as_double(const double& value) noexcept { return value; }

// One block of a sum over the columns.
template <class Term, class Element>
double block_of(const Element* x, const Element* y, std::int64_t cols) noexcept {
  double lanes[kLanes] = {};
  for (std::int64_t c = 0; c < cols; ++c) {
    lanes[c % kLanes] = Term::add(as_double(x[c]), as_double(y[c]), lanes[c % kLanes]);
  }
  double block = lanes[0];
  for (std::int64_t l = 1; l < kLanes; ++l) block += lanes[l];
  return block;
}

template <class Element>
void pair(const void* x_data, const void* y_data, std::int64_t cols, double* sums) noexcept {
  using Term = Product<!std::is_same_v<Element, double>>;
  const auto* x = static_cast<const Element*>(x_data);
  const auto* y = static_cast<const Element*>(y_data);
  sums[0] += block_of<Term>(x, x, cols);
  sums[1] += block_of<Term>(y, y, cols);
  sums[2] += block_of<Term>(x, y, cols);
  sums[3] += block_of<Difference>(x, y, cols);
}

template <class Element>
void products(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
              double* sums) noexcept {
  using Term = Product<!std::is_same_v<Element, double>>;
  const auto* x = static_cast<const Element*>(x_data);
  sums[0] += block_of<Term>(x, x, cols);
  for (std::int64_t j = 0; j < count; ++j) {
    const auto* y = static_cast<const Element*>(y_data[j]);
    sums[1 + 2 * j] += block_of<Term>(x, y, cols);
    sums[2 + 2 * j] += block_of<Term>(y, y, cols);
  }
}

template <class Term, class Element>
void sums_of(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
             double* sums) noexcept {
  const auto* x = static_cast<const Element*>(x_data);
  for (std::int64_t j = 0; j < count; ++j) {
    sums[j] += block_of<Term>(x, static_cast<const Element*>(y_data[j]), cols);
  }
}

template <class Element>
void pack(const void* const* rows, std::int64_t count, std::int64_t cols, double* to,
          std::int64_t lane_stride) noexcept {
  const std::int64_t padded = (cols + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t r = 0; r < kGroup; ++r) {
    for (std::int64_t c = 0; c < padded; ++c) {
      const bool is_there = r < count && c < cols;
      to[c % kLanes * lane_stride + c / kLanes * kGroup + r] =
          is_there ? as_double(static_cast<const Element*>(rows[r])[c]) : 0.0;
    }
  }
}

template <class Element>
constexpr RowKernels row_kernels() noexcept {
  return {pair<Element>, products<Element>, sums_of<Product<!std::is_same_v<Element, double>>, Element>,
          sums_of<Difference, Element>, pack<Element>};
}

}  // namespace

const DistanceKernels distance_scalar = {kGroup,
                                         kGroupsB,
                                         panels<Product<false>>,
                                         panels<Product<true>>,
                                         panels<Difference>,
                                         row_kernels<float>(),
                                         row_kernels<BFloat16>(),
                                         row_kernels<Half>(),
                                         row_kernels<double>()};

}  // namespace stun_ext::detail
