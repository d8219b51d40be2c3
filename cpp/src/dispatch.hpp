// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stun_ext/cpu.hpp"

namespace stun_ext::detail {

/// Extensions of the processor at hand; all false where they do not exist.
struct Features {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
  bool avx512vbmi2 = false, avx512vnni = false, avx512bf16 = false;
  bool amxbf16 = false;
  bool neon = false;
};
const Features& features() noexcept;

/// Whether this process may use the tiles of AMX, for bfloat16. The first call asks the system for it, after which the
/// kernel saves 8 KB more for each signal: so only who multiplies with them asks.
bool can_use_tiles() noexcept;

// How an operation chooses its kernels, once per call and outside every loop. The contract header of a family declares
// a table of functions, and one constant of that type per instruction set:
//
//   struct MaskKernels { … };                                          // kernels/mask.hpp
//   extern const MaskKernels mask_scalar, mask_avx2, mask_avx512;      // one file each
//
//   const MaskKernels& kernels = STUN_EXT_KERNELS(mask);               // in the operation
//
// A family without a table of its own for some instruction set names another there (see kernels/*.hpp).
#if defined(__x86_64__)
#define STUN_EXT_KERNELS(family)                                                      \
  (::stun_ext::isa() == ::stun_ext::Isa::avx512 ? ::stun_ext::detail::family##_avx512 \
   : ::stun_ext::isa() == ::stun_ext::Isa::avx2 ? ::stun_ext::detail::family##_avx2   \
                                                : ::stun_ext::detail::family##_scalar)
#elif defined(__aarch64__)
#define STUN_EXT_KERNELS(family) \
  (::stun_ext::isa() == ::stun_ext::Isa::neon ? ::stun_ext::detail::family##_neon : ::stun_ext::detail::family##_scalar)
#else
#define STUN_EXT_KERNELS(family) (::stun_ext::isa(), ::stun_ext::detail::family##_scalar)
#endif

}  // namespace stun_ext::detail
