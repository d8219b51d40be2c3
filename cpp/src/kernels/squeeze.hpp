// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {
namespace {

/// LinkageKernels::squeeze without an instruction for it.
inline void squeeze_by_bits(double* row, const std::uint8_t* kept, std::int64_t count) noexcept {
  double* to = row;
  for (std::int64_t k = 0; k < count; k += 8) {
    for (unsigned bits = kept[k / 8]; bits != 0; bits &= bits - 1) *to++ = row[k + __builtin_ctz(bits)];
  }
}

}  // namespace
}  // namespace stun_ext::detail
