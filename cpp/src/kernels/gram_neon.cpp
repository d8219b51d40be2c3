// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include "gram.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

// 24 sums, three vectors of b and two of a, of 32 registers; a's are multiplied by lane, so nothing is broadcast.
constexpr int kRowsA = 8;
constexpr int kVectorsB = 3;
constexpr int kRowsB = 4 * kVectorsB;

template <int lane>
inline void add_row(float32x4_t (&sum)[kVectorsB], const float32x4_t (&of_b)[kVectorsB], float32x4_t of_a) noexcept {
  STUN_EXT_UNROLL
  for (int v = 0; v < kVectorsB; ++v) sum[v] = vfmaq_laneq_f32(sum[v], of_b[v], of_a, lane);
}

void multiply(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  float32x4_t sum[kRowsA][kVectorsB];
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) sum[i][v] = vdupq_n_f32(0.0f);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    float32x4_t of_b[kVectorsB];
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) of_b[v] = vld1q_f32(b + k * kRowsB + 4 * v);
    STUN_EXT_UNROLL
    for (int i = 0; i < kRowsA; i += 4) {
      const float32x4_t of_a = vld1q_f32(a + k * kRowsA + i);
      add_row<0>(sum[i], of_b, of_a);
      add_row<1>(sum[i + 1], of_b, of_a);
      add_row<2>(sum[i + 2], of_b, of_a);
      add_row<3>(sum[i + 3], of_b, of_a);
    }
  }
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) {
      float* to = out + i * stride + 4 * v;
      vst1q_f32(to, accumulate ? vaddq_f32(vld1q_f32(to), sum[i][v]) : sum[i][v]);
    }
  }
}

}  // namespace

const GramKernels gram_neon = {kRowsA, kRowsB, multiply};

}  // namespace stun_ext::detail
