// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "matmul_lanes.hpp"

namespace stun_ext::detail {
namespace {

/// 16 columns to a vector of float32, and what the element types share. Values are widened and then spread, which
/// needs no more than AVX-512 F.
struct Floats {
  using X = float;
  using Spread = float;
  using Vector = __m512;
  using Sum = __m512;
  static constexpr int kVectors = 2;
  static constexpr int kTokens = 4;
  static void store(const __m512* v, float* to) noexcept {
    _mm512_store_ps(to, v[0]);
    _mm512_store_ps(to + 16, v[1]);
  }
  static __m512 load_spread(const float* from) noexcept { return _mm512_load_ps(from); }
  static __m512 zero() noexcept { return _mm512_setzero_ps(); }
  static __m512 dot(__m512 sum, __m512 weights, const float* x) noexcept {
    return _mm512_fmadd_ps(weights, _mm512_loadu_ps(x), sum);
  }
  static float total(__m512 sum) noexcept { return _mm512_reduce_add_ps(sum); }
};

template <class Element>
struct Lanes : Floats {
  using Stored = typename Element::Stored;
  static void expand(std::uint32_t mask, const Stored* from, __m512* out) noexcept {
    const auto low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
    out[0] = _mm512_maskz_expand_ps(low, Element::load(from));
    out[1] = _mm512_maskz_expand_ps(high, Element::load(from + _mm_popcnt_u32(mask & 0xffffu)));
  }
  static void load(const Stored* from, __m512* out) noexcept {
    out[0] = Element::load(from);
    out[1] = Element::load(from + 16);
  }
};

struct F32 {
  using Stored = float;
  static __m512 load(const float* from) noexcept { return _mm512_loadu_ps(from); }
};
struct F16 {
  using Stored = std::uint16_t;
  static __m512 load(const std::uint16_t* from) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};
struct BF16 {
  using Stored = std::uint16_t;
  static __m512 load(const std::uint16_t* from) noexcept {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
};

}  // namespace

const MatmulKernels matmul_avx512 = {MatmulLanes<Lanes<F32>>::multiply, MatmulLanes<Lanes<F16>>::multiply,
                                     MatmulLanes<Lanes<BF16>>::multiply};

}  // namespace stun_ext::detail
