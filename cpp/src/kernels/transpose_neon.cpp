// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include "transpose_lanes.hpp"

namespace stun_ext::detail {
namespace {

struct Zips {
  using Value = uint16x8_t;
  static constexpr std::int64_t kParts = 1;
  static Value load(const void* from, std::int64_t) noexcept {
    return vreinterpretq_u16_u8(vld1q_u8(static_cast<const std::uint8_t*>(from)));
  }
  static void store(void* to, Value value) noexcept {
    vst1q_u8(static_cast<std::uint8_t*>(to), vreinterpretq_u8_u16(value));
  }
  static uint32x4_t wide(Value value) noexcept { return vreinterpretq_u32_u16(value); }
  static uint64x2_t widest(Value value) noexcept { return vreinterpretq_u64_u16(value); }
  static Value low16(Value a, Value b) noexcept { return vzip1q_u16(a, b); }
  static Value high16(Value a, Value b) noexcept { return vzip2q_u16(a, b); }
  static Value low32(Value a, Value b) noexcept { return vreinterpretq_u16_u32(vzip1q_u32(wide(a), wide(b))); }
  static Value high32(Value a, Value b) noexcept { return vreinterpretq_u16_u32(vzip2q_u32(wide(a), wide(b))); }
  static Value low64(Value a, Value b) noexcept { return vreinterpretq_u16_u64(vzip1q_u64(widest(a), widest(b))); }
  static Value high64(Value a, Value b) noexcept { return vreinterpretq_u16_u64(vzip2q_u64(widest(a), widest(b))); }
};

}  // namespace

const TransposeKernels transpose_neon = TransposeLanes<Zips>::kernels();

}  // namespace stun_ext::detail
