// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <type_traits>

#include "check.hpp"
#include "nm.hpp"

namespace stun_ext::detail {
namespace {

/// Integers in the order of the floating-point numbers that have these bits.
template <class Bits>
auto ordered(Bits bits) noexcept {
  using Signed = std::make_signed_t<Bits>;
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  const auto magnitude = static_cast<Signed>(bits & kMagnitude);
  return static_cast<Signed>((bits & static_cast<Bits>(~kMagnitude)) != 0 ? -magnitude : magnitude);
}

template <int m, class Bits>
void keep_by_counting(const Bits* scores, std::int64_t count, std::int64_t n, std::uint8_t* mask) noexcept {
  for (std::int64_t block = 0; block < count; block += m) {
    std::make_signed_t<Bits> values[m];
    for (int c = 0; c < m; ++c) values[c] = ordered(scores[block + c]);
    for (int c = 0; c < m; ++c) {
      int before = 0;
      for (int k = 0; k < c; ++k) before += values[k] > values[c];
      for (int k = c + 1; k < m; ++k) before += values[k] >= values[c];
      mask[block + c] = before < n;
    }
  }
}

template <class Bits>
void keep_by_selecting(const Bits* scores, std::int64_t count, std::int64_t n, std::int64_t m, std::uint8_t* mask,
                       std::int64_t* order) noexcept {
  for (std::int64_t block = 0; block < count; block += m) {
    const Bits* values = scores + block;
    for (std::int64_t c = 0; c < m; ++c) order[c] = c;
    std::nth_element(order, order + (m - n), order + m, [values](std::int64_t a, std::int64_t b) {
      const auto x = ordered(values[a]), y = ordered(values[b]);
      return x != y ? x < y : a < b;
    });
    for (std::int64_t c = 0; c < m; ++c) mask[block + order[c]] = c >= m - n;
  }
}

bool any_above(const std::uint16_t* scores, std::int64_t count, std::uint16_t limit) noexcept {
  return check_scalar.any_above_u16(scores, count, limit);
}
bool any_above(const std::uint32_t* scores, std::int64_t count, std::uint32_t limit) noexcept {
  return check_scalar.any_above_u32(scores, count, limit);
}

template <class Bits>
bool keep_highest(const Bits* scores, std::int64_t count, NmPattern pattern, Bits limit, std::uint8_t* mask,
                  std::int64_t* order) noexcept {
  const auto [n, m] = pattern;
  if (m == 2) {
    keep_by_counting<2>(scores, count, n, mask);
  } else if (m == 4) {
    keep_by_counting<4>(scores, count, n, mask);
  } else if (m == 8) {
    keep_by_counting<8>(scores, count, n, mask);
  } else {
    keep_by_selecting(scores, count, n, m, mask, order);
  }
  return any_above(scores, count, limit);
}

}  // namespace

const NmKernels nm_scalar = {keep_highest<std::uint16_t>, keep_highest<std::uint32_t>};

}  // namespace stun_ext::detail
