// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "gram.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

// Twelve sums, two vectors of b and one of a: fifteen of sixteen registers.
constexpr int kRowsA = 6;
constexpr int kVectorsB = 2;
constexpr int kRowsB = 8 * kVectorsB;
constexpr std::int64_t kAhead = 512;  // floats: rows of b stay in the first cache, those of a come from the second

void multiply(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  __m256 sum[kRowsA][kVectorsB];
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm256_setzero_ps();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(a + k * kRowsA + kAhead);
    __m256 of_b[kVectorsB];
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) of_b[v] = _mm256_loadu_ps(b + k * kRowsB + 8 * v);
    STUN_EXT_UNROLL
    for (int i = 0; i < kRowsA; ++i) {
      const __m256 of_a = _mm256_broadcast_ss(a + k * kRowsA + i);
      STUN_EXT_UNROLL
      for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm256_fmadd_ps(of_a, of_b[v], sum[i][v]);
    }
  }
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) {
      float* to = out + i * stride + 8 * v;
      _mm256_storeu_ps(to, accumulate ? _mm256_add_ps(_mm256_loadu_ps(to), sum[i][v]) : sum[i][v]);
    }
  }
}

}  // namespace

const GramKernels gram_avx2 = {kRowsA, kRowsB, multiply};

}  // namespace stun_ext::detail
