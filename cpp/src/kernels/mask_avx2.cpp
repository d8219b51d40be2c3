// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "mask.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kFloats = 8;
constexpr std::int64_t kHalves = 16;

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

// Eight values as float32, and the scalar kernels of their type for what is less than a vector.
struct F32 {
  using Stored = float;
  static constexpr auto scores_rest = &MaskKernels::scores_f32;
  static constexpr auto uppers_rest = &MaskKernels::uppers_f32;
  static __m256 load(const float* from) noexcept { return _mm256_loadu_ps(from); }
};
struct F16 {
  using Stored = std::uint16_t;
  static constexpr auto scores_rest = &MaskKernels::scores_f16;
  static constexpr auto uppers_rest = &MaskKernels::uppers_f16;
  static __m256 load(const std::uint16_t* from) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
};
struct BF16 {
  using Stored = std::uint16_t;
  static constexpr auto scores_rest = &MaskKernels::scores_bf16;
  static constexpr auto uppers_rest = &MaskKernels::uppers_bf16;
  static __m256 load(const std::uint16_t* from) noexcept {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
};

const float* at(const float* norm, std::int64_t c) noexcept { return norm == nullptr ? nullptr : norm + c; }

inline __m256i load(const void* from) noexcept { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i values) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(to), values); }

/// Bits of the products, whose sign is the weights'.
template <class Element>
inline __m256i product(const typename Element::Stored* row, const float* norm) noexcept {
  const __m256 weight = Element::load(row);
  return _mm256_castps_si256(norm == nullptr ? weight : _mm256_mul_ps(weight, _mm256_loadu_ps(norm)));
}

template <class Element>
void scores(const typename Element::Stored* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  std::int64_t c = 0;
  for (; c + kFloats <= count; c += kFloats) {
    store(keys + c, _mm256_and_si256(product<Element>(row + c, at(norm, c)), magnitude));
  }
  (mask_scalar.*Element::scores_rest)(row + c, at(norm, c), count - c, keys + c);
}

template <class Element>
void uppers(const typename Element::Stored* row, const float* norm, std::int64_t count, std::int16_t* out) noexcept {
  constexpr int kInOrder = 0xd8;  // 0, 2, 1, 3: packing works on 128 bits at a time
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  std::int64_t c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    prefetch_weights(row + c);
    const __m256i low = _mm256_srli_epi32(product<Element>(row + c, at(norm, c)), 16);
    const __m256i high = _mm256_srli_epi32(product<Element>(row + c + kFloats, at(norm, c + kFloats)), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), kInOrder);
    store(out + c, _mm256_and_si256(packed, magnitude));
  }
  (mask_scalar.*Element::uppers_rest)(row + c, at(norm, c), count - c, out + c);
}

inline std::int64_t ones(int bits) noexcept { return _mm_popcnt_u32(static_cast<unsigned>(bits)); }

std::int64_t count_above(const std::int16_t* values, std::int64_t count, std::int16_t limit) noexcept {
  const __m256i limits = _mm256_set1_epi16(limit);
  constexpr std::int64_t kBlock = 16384 * kHalves;  // what lanes of 16 bits can count
  std::int64_t above = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = count - begin < kBlock ? count : begin + kBlock;
    __m256i first = _mm256_setzero_si256(), second = first;
    for (std::int64_t c = begin; c < end; c += 2 * kHalves) {
      first = _mm256_sub_epi16(first, _mm256_cmpgt_epi16(load(values + c), limits));
      second = _mm256_sub_epi16(second, _mm256_cmpgt_epi16(load(values + c + kHalves), limits));
    }
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(first, one), _mm256_madd_epi16(second, one));
    std::int32_t lanes[kFloats];
    store(lanes, sums);
    for (const std::int32_t lane : lanes) above += lane;
  }
  return above;
}

std::int64_t find_equal(const std::int16_t* values, std::int64_t count, std::int16_t value,
                        std::uint32_t* columns) noexcept {
  const __m256i wanted = _mm256_set1_epi16(value);
  std::int64_t found = 0;
  for (std::int64_t c = 0; c < count; c += 2 * kHalves) {
    const __m256i first = _mm256_cmpeq_epi16(load(values + c), wanted);
    const __m256i second = _mm256_cmpeq_epi16(load(values + c + kHalves), wanted);
    // Bytes in the order 0-7, 16-23, 8-15, 24-31 of the columns, then put in order.
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    for (auto bits = static_cast<unsigned>(_mm256_movemask_epi8(bytes)); bits != 0; bits &= bits - 1) {
      columns[found++] = static_cast<std::uint32_t>(c) + static_cast<std::uint32_t>(__builtin_ctz(bits));
    }
  }
  return found;
}

void write_mask(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, std::uint8_t* mask) noexcept {
  const __m256i limits = _mm256_set1_epi16(limit);
  const __m256i one = _mm256_set1_epi8(1);
  std::int64_t c = 0;
  for (; c + 2 * kHalves <= count; c += 2 * kHalves) {
    prefetch_mask(mask + c);
    const __m256i first = _mm256_cmpgt_epi16(limits, load(uppers + c));
    const __m256i second = _mm256_cmpgt_epi16(limits, load(uppers + c + kHalves));
    const __m256i pruned = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    store(mask + c, _mm256_andnot_si256(pruned, one));
  }
  mask_scalar.write_mask(uppers + c, count - c, limit, mask + c);
}

/// Stores the elements that are not pruned (all bits set), and zeros; counts the zeros.
inline std::int64_t keep(__m256i pruned, std::uint16_t* row) noexcept {
  const __m256i values = _mm256_andnot_si256(pruned, load(row));
  store(row, values);
  const __m256i doubled = _mm256_add_epi16(values, values);  // without the sign
  return ones(_mm256_movemask_epi8(_mm256_cmpeq_epi16(doubled, _mm256_setzero_si256()))) / 2;
}
inline std::int64_t keep_floats(__m256i pruned, std::uint32_t* row) noexcept {
  const __m256i values = _mm256_andnot_si256(pruned, load(row));
  store(row, values);
  const __m256i doubled = _mm256_add_epi32(values, values);
  return ones(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(doubled, _mm256_setzero_si256()))));
}
inline std::int64_t keep(__m256i pruned, std::uint32_t* row) noexcept {
  const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(pruned));
  const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(pruned, 1));
  return keep_floats(low, row) + keep_floats(high, row + kFloats);
}

template <class Bits,
          std::int64_t (*MaskKernels::*rest)(const std::int16_t*, std::int64_t, std::int16_t, Bits*) noexcept>
std::int64_t prune(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, Bits* row) noexcept {
  const __m256i limits = _mm256_set1_epi16(limit);
  std::int64_t zeros = 0, c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    zeros += keep(_mm256_cmpgt_epi16(limits, load(uppers + c)), row + c);
  }
  return zeros + (mask_scalar.*rest)(uppers + c, count - c, limit, row + c);
}

template <class Bits, std::int64_t (*MaskKernels::*rest)(const std::uint8_t*, std::int64_t, Bits*) noexcept>
std::int64_t apply(const std::uint8_t* mask, std::int64_t count, Bits* row) noexcept {
  std::int64_t zeros = 0, c = 0;
  for (; c + kHalves <= count; c += kHalves) {
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(mask + c)));
    zeros += keep(_mm256_cmpeq_epi16(bytes, _mm256_setzero_si256()), row + c);
  }
  return zeros + (mask_scalar.*rest)(mask + c, count - c, row + c);
}

}  // namespace

const MaskKernels mask_avx2 = {scores<F32>,
                               scores<F16>,
                               scores<BF16>,
                               uppers<F32>,
                               uppers<F16>,
                               uppers<BF16>,
                               count_above,
                               find_equal,
                               write_mask,
                               prune<std::uint16_t, &MaskKernels::prune_u16>,
                               prune<std::uint32_t, &MaskKernels::prune_u32>,
                               apply<std::uint16_t, &MaskKernels::apply_u16>,
                               apply<std::uint32_t, &MaskKernels::apply_u32>};

}  // namespace stun_ext::detail
