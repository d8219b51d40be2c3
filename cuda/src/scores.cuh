// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "stun_ext/cuda/mask.hpp"

/// Scores as the CPU computes them (cpp/src/kernels/mask.hpp): |w| · sqrt(norm), each step rounded to float32. They are
/// not negative, so their bits order as they do; a *key* is those bits, its upper half the *upper*.
namespace stun_ext::cuda::detail {

/// Elements are moved 16 bytes at a time, and held as 32-bit words: two of 16 bits, or one of 32.
template <class Element>
constexpr int kVector = static_cast<int>(16 / sizeof(Element));

/// Bits of an element that is +Inf.
template <class Element>
constexpr std::uint32_t kInfinity = sizeof(Element) == 4                     ? 0x7f800000u
                                    : std::is_same_v<Element, __nv_bfloat16> ? 0x7f80u
                                                                             : 0x7c00u;
constexpr std::uint32_t kInfiniteUpper = 0x7f80u;  ///< the upper half of a key that is infinite

template <class Element>
__device__ inline float weight_from_bits(std::uint32_t bits) {
  if constexpr (sizeof(Element) == 4) {
    return __uint_as_float(bits);
  } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return __uint_as_float(bits << 16);
  } else {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));  // exact, subnormals too
  }
}

/// Magnitude bits of an element of these bits, and whether it is NaN or Inf.
template <class Element>
__device__ inline std::uint32_t magnitude_bits(std::uint32_t bits) {
  return bits & (sizeof(Element) == 4 ? 0x7fffffffu : 0x7fffu);
}
template <class Element>
__device__ inline bool is_finite(std::uint32_t bits) {
  return magnitude_bits<Element>(bits) < kInfinity<Element>;
}

/// The key of a score; `norm` is the root already.
template <class Element>
__device__ inline std::uint32_t key_of(std::uint32_t bits, float norm) {
  return __float_as_uint(__fmul_rn(weight_from_bits<Element>(bits), norm)) & 0x7fffffffu;
}
__device__ inline bool is_legal_norm(float value) { return value >= 0.0f && value < __int_as_float(0x7f800000); }

/// Notes the lowest place; see MaskStatus.
__device__ inline void note(std::uint64_t* status, std::uint64_t place) {
  atomicMax(reinterpret_cast<unsigned long long*>(status), static_cast<unsigned long long>(~place));
}

__device__ inline void store_vector(void* to, const uint4& value) { __stcs(static_cast<uint4*>(to), value); }

/// Copies 16 bytes to shared memory without passing through registers; wait_for_copies before the thread reads them.
__device__ inline void copy_vector(void* shared, const void* from) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(from)
      : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Asks for memory to be brought to the second cache: 16-byte aligned, a multiple of 16 bytes.
__device__ inline void prefetch(const void* from, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0 && bytes != 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
  for (std::uint32_t at = threadIdx.x * 128; at < bytes; at += blockDim.x * 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(from) + at) : "memory");
  }
#endif
}

template <class Element>
using Bits = std::conditional_t<sizeof(Element) == 4, std::uint32_t, std::uint16_t>;

}  // namespace stun_ext::cuda::detail
