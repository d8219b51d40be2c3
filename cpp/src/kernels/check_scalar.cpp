// SPDX-License-Identifier: Apache-2.0
#include <type_traits>

#include "check.hpp"

namespace stun_ext::detail {
namespace {

template <class Bits>
bool any_above(const Bits* bits, std::int64_t count, Bits limit) noexcept {
  using Signed = std::make_signed_t<Bits>;  // what SSE2 compares, in lanes as wide as the elements
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  Bits above = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const bool is_above = static_cast<Signed>(bits[i] & kMagnitude) > static_cast<Signed>(limit);
    above = static_cast<Bits>(above | static_cast<Bits>(is_above));
  }
  return above != 0;
}

}  // namespace

const CheckKernels check_scalar = {any_above<std::uint16_t>, any_above<std::uint32_t>};

}  // namespace stun_ext::detail
