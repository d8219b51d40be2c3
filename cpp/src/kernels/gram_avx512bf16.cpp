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

void multiply(const void* a_data, const void* b_data, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  // Pairs of columns, as the instruction takes them.
  const auto* a = static_cast<const std::int32_t*>(a_data);
  const auto* b = static_cast<const std::int32_t*>(b_data);
  __m512 sum[kRowsA][kVectorsB];
  STUN_EXT_UNROLL
  for (int i = 0; i < kRowsA; ++i) {
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < depth / 2; ++k) {
    __m512bh of_b[kVectorsB];
    STUN_EXT_UNROLL
    for (int v = 0; v < kVectorsB; ++v) of_b[v] = (__m512bh)_mm512_loadu_si512(b + k * kRowsB + 16 * v);
    STUN_EXT_UNROLL
    for (int i = 0; i < kRowsA; ++i) {
      const __m512bh of_a = (__m512bh)_mm512_set1_epi32(a[k * kRowsA + i]);
      STUN_EXT_UNROLL
      for (int v = 0; v < kVectorsB; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], of_a, of_b[v]);
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

const GramKernels gram_avx512bf16 = {kRowsA, kRowsB, true, multiply};

}  // namespace stun_ext::detail
