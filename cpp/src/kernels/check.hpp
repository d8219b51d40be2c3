// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

// Whether any of some floating-point numbers is NaN or infinite: np.any((bits & magnitude) > limit), on the bits of 2-
// or 4-byte formats without their signs. Wide loads, and prefetching over the ends of pages, are what reads memory at
// its rate: 13 to 15 GB/s on one core of a Xeon (family 6, model 207), where SSE2 reads 8.

struct CheckKernels {
  bool (*any_above_u16)(const std::uint16_t* bits, std::int64_t count, std::uint16_t limit) noexcept;
  bool (*any_above_u32)(const std::uint32_t* bits, std::int64_t count, std::uint32_t limit) noexcept;
};

extern const CheckKernels check_scalar;  // the others leave it less than a cache line at the end
extern const CheckKernels check_avx2;
extern const CheckKernels check_avx512;
extern const CheckKernels check_neon;

}  // namespace stun_ext::detail
