// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "distance.hpp"

namespace stun_ext::detail {
namespace {

// Compilers do not vectorise the loops over lanes by themselves, so the widest vector that the build's target has is
// asked for: two doubles on any x86-64 or AArch64, more under STUN_EXT_NATIVE. A lane is a lane at every width.
#if defined(__GNUC__) && defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__GNUC__) && defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
#if defined(__GNUC__)
typedef double Vector __attribute__((vector_size(kBytes)));
#else
using Vector = double;
#endif
constexpr int kWidth = static_cast<int>(sizeof(Vector) / sizeof(double));
constexpr int kVectors = static_cast<int>(kLanes) / kWidth;

// Pairs of rows taken at once: as many as keep their sums in registers.
constexpr int kBlockA = kVectors >= 4 ? 1 : 2;
constexpr int kBlockB = kVectors >= 2 ? 2 : 4;

Vector load(const double* from) noexcept {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <int A, int B>
void block(const double* a, std::int64_t a_stride, const double* b, std::int64_t b_stride, std::int64_t cols,
           double* lanes, std::int64_t lanes_stride) noexcept {
  Vector sum[A][B][kVectors];
  for (int i = 0; i < A; ++i) {
    for (int j = 0; j < B; ++j) std::memcpy(sum[i][j], lanes + i * lanes_stride + j * kLanes, sizeof sum[i][j]);
  }
  for (std::int64_t c = 0; c < cols; c += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < A; ++i) {
        const Vector x = load(a + i * a_stride + c + v * kWidth);
        for (int j = 0; j < B; ++j) {
          const Vector d = x - load(b + j * b_stride + c + v * kWidth);
          sum[i][j][v] += d * d;
        }
      }
    }
  }
  for (int i = 0; i < A; ++i) {
    for (int j = 0; j < B; ++j) std::memcpy(lanes + i * lanes_stride + j * kLanes, sum[i][j], sizeof sum[i][j]);
  }
}

template <int A>
void rows_of_a(const double* a, std::int64_t a_stride, const double* b, std::int64_t b_rows, std::int64_t b_stride,
               std::int64_t cols, double* lanes) noexcept {
  const std::int64_t lanes_stride = b_rows * kLanes;
  std::int64_t j = 0;
  for (; j + kBlockB <= b_rows; j += kBlockB) {
    block<A, kBlockB>(a, a_stride, b + j * b_stride, b_stride, cols, lanes + j * kLanes, lanes_stride);
  }
  for (; j < b_rows; ++j) block<A, 1>(a, a_stride, b + j * b_stride, b_stride, cols, lanes + j * kLanes, lanes_stride);
}

void squared_differences(const double* a, std::int64_t a_rows, std::int64_t a_stride, const double* b,
                         std::int64_t b_rows, std::int64_t b_stride, std::int64_t cols, double* lanes) noexcept {
  std::int64_t i = 0;
  for (; i + kBlockA <= a_rows; i += kBlockA) {
    rows_of_a<kBlockA>(a + i * a_stride, a_stride, b, b_rows, b_stride, cols, lanes + i * b_rows * kLanes);
  }
  for (; i < a_rows; ++i) {
    rows_of_a<1>(a + i * a_stride, a_stride, b, b_rows, b_stride, cols, lanes + i * b_rows * kLanes);
  }
}

}  // namespace

const DistanceKernels distance_scalar = {squared_differences};

}  // namespace stun_ext::detail
