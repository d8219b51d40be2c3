// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "mask.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kFloats = 16;
constexpr std::int64_t kHalves = 32;

/// Asks for what is read or written next: the processor's own prefetching ends with the page. Weights go to the second
/// cache, for the first one is full of upper halves.
inline void prefetch_weights(const void* from) noexcept {
  constexpr std::int64_t kAhead = 8192;  // bytes
  _mm_prefetch(static_cast<const char*>(from) + kAhead, _MM_HINT_T1);
}
inline void prefetch_mask(const void* from) noexcept {
  constexpr std::int64_t kAhead = 2048;
  _mm_prefetch(static_cast<const char*>(from) + kAhead, _MM_HINT_T0);
}

// Sixteen values as float32, and the scalar kernels of their type for what is less than a vector.
struct F32 {
  using Stored = float;
  static constexpr auto scores_rest = &MaskKernels::scores_f32;
  static constexpr auto uppers_rest = &MaskKernels::uppers_f32;
  static __m512 load(const float* from) noexcept { return _mm512_loadu_ps(from); }
};
struct F16 {
  using Stored = std::uint16_t;
  static constexpr auto scores_rest = &MaskKernels::scores_f16;
  static constexpr auto uppers_rest = &MaskKernels::uppers_f16;
  static __m512 load(const std::uint16_t* from) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};
struct BF16 {
  using Stored = std::uint16_t;
  static constexpr auto scores_rest = &MaskKernels::scores_bf16;
  static __m512 load(const std::uint16_t* from) noexcept {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
};

const float* at(const float* norm, std::int64_t c) noexcept { return norm == nullptr ? nullptr : norm + c; }

/// Bits of the products, whose sign is the weights'.
template <class Element>
inline __m512i product(const typename Element::Stored* row, const float* norm) noexcept {
  const __m512 weight = Element::load(row);
  return _mm512_castps_si512(norm == nullptr ? weight : _mm512_mul_ps(weight, _mm512_loadu_ps(norm)));
}

template <class Element>
void scores(const typename Element::Stored* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  std::int64_t c = 0;
  for (; c + kFloats <= count; c += kFloats) {
    _mm512_storeu_si512(keys + c, _mm512_and_si512(product<Element>(row + c, at(norm, c)), magnitude));
  }
  (mask_scalar.*Element::scores_rest)(row + c, at(norm, c), count - c, keys + c);
}

template <class Element>
void uppers(const typename Element::Stored* row, const float* norm, std::int64_t count, std::int16_t* out) noexcept {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // packing works on 128 bits at a time
  std::int64_t c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    prefetch_weights(row + c);
    if (sizeof(*row) == 4) prefetch_weights(row + c + kFloats);
    const __m512i low = _mm512_srli_epi32(product<Element>(row + c, at(norm, c)), 16);
    const __m512i high = _mm512_srli_epi32(product<Element>(row + c + kFloats, at(norm, c + kFloats)), 16);
    const __m512i packed = _mm512_permutexvar_epi64(in_order, _mm512_packus_epi32(low, high));
    _mm512_storeu_si512(out + c, _mm512_and_si512(packed, magnitude));
  }
  (mask_scalar.*Element::uppers_rest)(row + c, at(norm, c), count - c, out + c);
}

/// Of bfloat16 the even and the odd columns are widened where they stand, and so are their uppers.
void uppers_bf16(const std::uint16_t* row, const float* norm, std::int64_t count, std::int16_t* out) noexcept {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  constexpr __mmask32 kOdd = 0xaaaaaaaau;
  std::int64_t c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    prefetch_weights(row + c);
    __m512i key = _mm512_and_si512(_mm512_loadu_si512(row + c), magnitude);
    if (norm != nullptr) {
      const __m512 first = _mm512_loadu_ps(norm + c), second = _mm512_loadu_ps(norm + c + kFloats);
      const __m512 of_even =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(key, 16)), _mm512_permutex2var_ps(first, even, second));
      const __m512 of_odd =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(key, upper)), _mm512_permutex2var_ps(first, odd, second));
      key = _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(_mm512_castps_si512(of_even), 16),
                                    _mm512_castps_si512(of_odd));
    }
    _mm512_storeu_si512(out + c, key);
  }
  mask_scalar.uppers_bf16(row + c, at(norm, c), count - c, out + c);
}

inline std::int64_t ones(__mmask32 bits) noexcept { return _mm_popcnt_u32(bits); }

std::int64_t count_above(const std::int16_t* values, std::int64_t count, std::int16_t limit) noexcept {
  static_assert(kUpperMultiple == 2 * kHalves);
  const __m512i limits = _mm512_set1_epi16(limit);
  std::int64_t above = 0;
  for (std::int64_t c = 0; c < count; c += kUpperMultiple) {
    const __mmask32 first = _mm512_cmpgt_epi16_mask(_mm512_loadu_si512(values + c), limits);
    const __mmask32 second = _mm512_cmpgt_epi16_mask(_mm512_loadu_si512(values + c + kHalves), limits);
    above += ones(first) + ones(second);
  }
  return above;
}

std::int64_t find_equal(const std::int16_t* values, std::int64_t count, std::int16_t value,
                        std::uint32_t* columns) noexcept {
  const __m512i wanted = _mm512_set1_epi16(value);
  std::int64_t found = 0;
  for (std::int64_t c = 0; c < count; c += kUpperMultiple) {
    const __mmask32 first = _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(values + c), wanted);
    const __mmask32 second = _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(values + c + kHalves), wanted);
    for (std::uint64_t bits = _mm512_kunpackd(second, first); bits != 0; bits &= bits - 1) {
      columns[found++] = static_cast<std::uint32_t>(c) + static_cast<std::uint32_t>(__builtin_ctzll(bits));
    }
  }
  return found;
}

void write_mask(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, std::uint8_t* mask) noexcept {
  const __m512i limits = _mm512_set1_epi16(limit);
  std::int64_t c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    const __mmask32 kept = _mm512_cmpge_epi16_mask(_mm512_loadu_si512(uppers + c), limits);
    prefetch_mask(mask + c);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(mask + c), _mm256_maskz_set1_epi8(kept, 1));
  }
  mask_scalar.write_mask(uppers + c, count - c, limit, mask + c);
}

/// Stores the elements kept, and zeros; counts the zeros.
inline std::int64_t keep(__mmask32 kept, std::uint16_t* row) noexcept {
  const __m512i values = _mm512_maskz_loadu_epi16(kept, row);
  _mm512_storeu_si512(row, values);
  return ones(_mm512_testn_epi16_mask(values, _mm512_set1_epi16(0x7fff)));
}
inline std::int64_t keep(__mmask32 kept, std::uint32_t* row) noexcept {
  const __m512i low = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(kept), row);
  const __m512i high = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(kept >> kFloats), row + kFloats);
  _mm512_storeu_si512(row, low);
  _mm512_storeu_si512(row + kFloats, high);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return ones(_mm512_kunpackw(_mm512_testn_epi32_mask(high, magnitude), _mm512_testn_epi32_mask(low, magnitude)));
}

template <class Bits,
          std::int64_t (*MaskKernels::*rest)(const std::int16_t*, std::int64_t, std::int16_t, Bits*) noexcept>
std::int64_t prune(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, Bits* row) noexcept {
  const __m512i limits = _mm512_set1_epi16(limit);
  std::int64_t zeros = 0, c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    zeros += keep(_mm512_cmpge_epi16_mask(_mm512_loadu_si512(uppers + c), limits), row + c);
  }
  return zeros + (mask_scalar.*rest)(uppers + c, count - c, limit, row + c);
}

template <class Bits, std::int64_t (*MaskKernels::*rest)(const std::uint8_t*, std::int64_t, Bits*) noexcept>
std::int64_t apply(const std::uint8_t* mask, std::int64_t count, Bits* row) noexcept {
  std::int64_t zeros = 0, c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + c));
    zeros += keep(_mm256_test_epi8_mask(bytes, bytes), row + c);
  }
  return zeros + (mask_scalar.*rest)(mask + c, count - c, row + c);
}

}  // namespace

const MaskKernels mask_avx512 = {scores<F32>,
                                 scores<F16>,
                                 scores<BF16>,
                                 uppers<F32>,
                                 uppers<F16>,
                                 uppers_bf16,
                                 count_above,
                                 find_equal,
                                 write_mask,
                                 prune<std::uint16_t, &MaskKernels::prune_u16>,
                                 prune<std::uint32_t, &MaskKernels::prune_u32>,
                                 apply<std::uint16_t, &MaskKernels::apply_u16>,
                                 apply<std::uint32_t, &MaskKernels::apply_u32>};

}  // namespace stun_ext::detail
