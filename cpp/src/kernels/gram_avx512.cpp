// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "gram.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

// 24 sums, two vectors of b and one of a, of 32 registers.
constexpr int kRowsA = 12;
constexpr int kVectorsB = 2;
constexpr int kRowsB = 16 * kVectorsB;
constexpr std::int64_t kAhead = 512;  // floats: rows of b stay in the first cache, those of a come from the second

void multiply(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  __m512 sum[kRowsA][kVectorsB];
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(a + k * kRowsA + kAhead);
    __m512 of_b[kVectorsB];
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) of_b[v] = _mm512_loadu_ps(b + k * kRowsB + 16 * v);
    STUN_EXT_UNROLL
    for (int i = 0; i < kRowsA; ++i) {
      const __m512 of_a = _mm512_set1_ps(a[k * kRowsA + i]);
      STUN_EXT_UNROLL
      for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm512_fmadd_ps(of_a, of_b[v], sum[i][v]);
    }
  }
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) {
      float* to = out + i * stride + 16 * v;
      _mm512_storeu_ps(to, accumulate ? _mm512_add_ps(_mm512_loadu_ps(to), sum[i][v]) : sum[i][v]);
    }
  }
}

}  // namespace

const GramKernels gram_avx512 = {kRowsA, kRowsB, multiply};

}  // namespace stun_ext::detail
