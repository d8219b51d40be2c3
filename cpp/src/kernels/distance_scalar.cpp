// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "../load.hpp"
#include "distance.hpp"

namespace stun_ext::detail {
namespace {

void squared_differences(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                         std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols, double* lanes) noexcept {
  for (std::int64_t i = 0; i < a_rows; ++i) {
    for (std::int64_t j = 0; j < b_rows; ++j) {
      double* sum = lanes + (i * b_rows + j) * kLanes;
      for (std::int64_t c = 0; c < cols; c += kLanes) {
        for (std::int64_t l = 0; l < kLanes; ++l) {
          const double d = a[i * a_stride + c + l] - b[j * b_stride + c + l];
          sum[l] = std::fma(d, d, sum[l]);
        }
      }
    }
  }
}

template <class Element>
double as_double(const Element& value) noexcept {
  return static_cast<double>(to_float(value));
}
double as_double(const double& value) noexcept { return value; }

template <class Element>
void row_with_rows(const Element* a, const Element* const* b, std::int64_t count, std::int64_t cols,
                   double* lanes) noexcept {
  for (std::int64_t j = 0; j < count; ++j) {
    double* sum = lanes + j * kLanes;
    for (std::int64_t l = 0; l < kLanes; ++l) sum[l] = 0.0;
    for (std::int64_t c = 0; c < cols; ++c) {
      const double d = as_double(a[c]) - as_double(b[j][c]);
      sum[c % kLanes] = std::fma(d, d, sum[c % kLanes]);
    }
  }
}

template <class Element>
void row_with_rows_as(const std::uint16_t* a, const std::uint16_t* const* b, std::int64_t count, std::int64_t cols,
                      double* lanes) noexcept {
  const Element* rows[kManyRows];
  for (std::int64_t j = 0; j < count; ++j) rows[j] = reinterpret_cast<const Element*>(b[j]);
  row_with_rows(reinterpret_cast<const Element*>(a), rows, count, cols, lanes);
}

template <class Element, class Stored>
void widen(const Stored* from, std::int64_t count, double* to) noexcept {
  const auto* elements = reinterpret_cast<const Element*>(from);
  for (std::int64_t c = 0; c < count; ++c) to[c] = as_double(elements[c]);
}

}  // namespace

const DistanceKernels distance_scalar = {squared_differences,
                                         row_with_rows<float>,
                                         row_with_rows_as<BFloat16>,
                                         row_with_rows_as<Half>,
                                         row_with_rows<double>,
                                         widen<float>,
                                         widen<BFloat16>,
                                         widen<Half>};

}  // namespace stun_ext::detail
