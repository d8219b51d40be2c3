// SPDX-License-Identifier: Apache-2.0
#include "distance.hpp"

namespace stun_ext::detail {
namespace {

// One row against two: what the sixteen registers of SSE2 hold. The compiler vectorises the loops over lanes.
void one_by_two(const double* a, const double* b0, const double* b1, std::int64_t cols, double* lanes) noexcept {
  double sum0[kLanes], sum1[kLanes];
  for (int k = 0; k < kLanes; ++k) sum0[k] = lanes[k];
  for (int k = 0; k < kLanes; ++k) sum1[k] = lanes[kLanes + k];
  for (std::int64_t c = 0; c < cols; c += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const double d0 = a[c + k] - b0[c + k];
      const double d1 = a[c + k] - b1[c + k];
      sum0[k] += d0 * d0;
      sum1[k] += d1 * d1;
    }
  }
  for (int k = 0; k < kLanes; ++k) lanes[k] = sum0[k];
  for (int k = 0; k < kLanes; ++k) lanes[kLanes + k] = sum1[k];
}

void one_by_one(const double* a, const double* b, std::int64_t cols, double* lanes) noexcept {
  double sum[kLanes];
  for (int k = 0; k < kLanes; ++k) sum[k] = lanes[k];
  for (std::int64_t c = 0; c < cols; c += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const double d = a[c + k] - b[c + k];
      sum[k] += d * d;
    }
  }
  for (int k = 0; k < kLanes; ++k) lanes[k] = sum[k];
}

}  // namespace

void squared_differences_scalar(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                                std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols, double* lanes) noexcept {
  for (std::int64_t i = 0; i < a_rows; ++i) {
    const double* row = a + i * a_stride;
    double* out = lanes + i * b_rows * kLanes;
    std::int64_t j = 0;
    for (; j + 2 <= b_rows; j += 2) {
      one_by_two(row, b + j * b_stride, b + (j + 1) * b_stride, cols, out + j * kLanes);
    }
    if (j < b_rows) one_by_one(row, b + j * b_stride, cols, out + j * kLanes);
  }
}

}  // namespace stun_ext::detail
