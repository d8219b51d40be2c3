// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "check.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kAhead = 8192;  // bytes
constexpr std::int64_t kLine = 64;

/// The highest magnitudes by lanes, over the whole cache lines among `count` elements; `done` of them.
template <class Bits, class Max>
inline __m256i highest(const Bits* bits, std::int64_t count, __m256i magnitude, std::int64_t& done,
                       Max&& max) noexcept {
  constexpr std::int64_t kStep = kLine / static_cast<std::int64_t>(sizeof(Bits));
  __m256i first = _mm256_setzero_si256(), second = first;
  for (done = 0; done + kStep <= count; done += kStep) {
    const auto* from = reinterpret_cast<const __m256i*>(bits + done);
    _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
    first = max(first, _mm256_and_si256(_mm256_loadu_si256(from), magnitude));
    second = max(second, _mm256_and_si256(_mm256_loadu_si256(from + 1), magnitude));
  }
  return max(first, second);
}

bool any_above_u16(const std::uint16_t* bits, std::int64_t count, std::uint16_t limit) noexcept {
  std::int64_t done;
  const __m256i found = highest(bits, count, _mm256_set1_epi16(0x7fff), done,
                                [](__m256i a, __m256i b) { return _mm256_max_epi16(a, b); });
  const __m256i above = _mm256_cmpgt_epi16(found, _mm256_set1_epi16(static_cast<short>(limit)));
  return _mm256_testz_si256(above, above) == 0 || check_scalar.any_above_u16(bits + done, count - done, limit);
}

bool any_above_u32(const std::uint32_t* bits, std::int64_t count, std::uint32_t limit) noexcept {
  std::int64_t done;
  const __m256i found = highest(bits, count, _mm256_set1_epi32(0x7fffffff), done,
                                [](__m256i a, __m256i b) { return _mm256_max_epi32(a, b); });
  const __m256i above = _mm256_cmpgt_epi32(found, _mm256_set1_epi32(static_cast<int>(limit)));
  return _mm256_testz_si256(above, above) == 0 || check_scalar.any_above_u32(bits + done, count - done, limit);
}

}  // namespace

const CheckKernels check_avx2 = {any_above_u16, any_above_u32};

}  // namespace stun_ext::detail
