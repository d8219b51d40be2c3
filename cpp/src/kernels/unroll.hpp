// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Before a loop over an array of vectors that is to live in registers: all such loops over it must be unrolled, or
/// compilers keep it in memory.
#if defined(__clang__)
#define STUN_EXT_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define STUN_EXT_UNROLL _Pragma("GCC unroll 32")
#else
#define STUN_EXT_UNROLL
#endif

/// For a function that only fetches: compilers take it for one without effects and drop calls that are not inlined.
#define STUN_EXT_INLINE __attribute__((always_inline)) inline
