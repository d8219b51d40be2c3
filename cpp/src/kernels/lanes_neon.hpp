// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace stun_ext::detail {
namespace {

// As lanes_avx512.hpp, where the names are explained. A mask is a vector whose lanes have all bits set or none.

struct Lanes16 {
  using Bits = std::uint16_t;
  using Value = int16x8_t;
  using Mask = uint16x8_t;
  static constexpr std::int64_t kWidth = 8;
  static constexpr int kWidestBlock = 16;

  static Value load(const void* from) noexcept {
    return vreinterpretq_s16_u8(vld1q_u8(static_cast<const std::uint8_t*>(from)));
  }
  static void store(void* to, Value value) noexcept {
    vst1q_u8(static_cast<std::uint8_t*>(to), vreinterpretq_u8_s16(value));
  }
  static Value fill(int value) noexcept { return vdupq_n_s16(static_cast<std::int16_t>(value)); }
  static Value magnitude(Value bits) noexcept { return vandq_s16(bits, fill(0x7fff)); }
  static Value higher(Value a, Value b) noexcept { return vmaxq_s16(a, b); }
  static Value add(Value a, Value b) noexcept { return vaddq_s16(a, b); }
  static Value ordered(Value bits) noexcept {
    const Value sign = vshrq_n_s16(bits, 15);
    return vsubq_s16(veorq_s16(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return vcgtq_s16(a, b); }
  static Mask equal(Value a, Value b) noexcept { return vceqq_s16(a, b); }
  static Mask is_zero(Value bits) noexcept { return vceqzq_s16(magnitude(bits)); }
  static bool any(Mask mask) noexcept { return vmaxvq_u16(mask) != 0; }
  static std::int64_t count(Mask mask) noexcept { return vaddvq_u16(vshrq_n_u16(mask, 15)); }
  static Value load_where(Mask mask, const void* from) noexcept {
    return vandq_s16(vreinterpretq_s16_u16(mask), load(from));
  }
  static Value decrement(Value sums, Mask mask) noexcept { return vaddq_s16(sums, vreinterpretq_s16_u16(mask)); }
  struct Counter {
    void add(Mask mask) noexcept { sums = decrement(sums, mask); }
    std::int64_t total() const noexcept { return -static_cast<std::int64_t>(vaddlvq_s16(sums)); }
    Value sums = vdupq_n_s16(0);
  };

  static Mask of_bytes(const std::uint8_t* from) noexcept {
    const uint16x8_t bytes = vmovl_u8(vld1_u8(from));
    return vtstq_u16(bytes, bytes);
  }
  static uint8x16_t bytes(Mask first, Mask second) noexcept { return vcombine_u8(vmovn_u16(first), vmovn_u16(second)); }
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    vst1q_u8(to, vandq_u8(bytes(first, second), vdupq_n_u8(1)));
  }
  static std::uint64_t bits(Mask first, Mask second) noexcept {
    const uint8x16_t places = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    const uint8x16_t at = vandq_u8(bytes(first, second), places);
    return vaddv_u8(vget_low_u8(at)) | static_cast<std::uint64_t>(vaddv_u8(vget_high_u8(at))) << 8;
  }

  static Value shuffle(Value value, Value from) noexcept {
    return vreinterpretq_s16_u8(vqtbl1q_u8(vreinterpretq_u8_s16(value), vreinterpretq_u8_s16(from)));
  }
};

struct Lanes32 {
  using Bits = std::uint32_t;
  using Value = int32x4_t;
  using Mask = uint32x4_t;
  static constexpr std::int64_t kWidth = 4;
  static constexpr int kWidestBlock = 16;

  static Value load(const void* from) noexcept { return vreinterpretq_s32_s16(Lanes16::load(from)); }
  static void store(void* to, Value value) noexcept { Lanes16::store(to, vreinterpretq_s16_s32(value)); }
  static Value fill(int value) noexcept { return vdupq_n_s32(value); }
  static Value magnitude(Value bits) noexcept { return vandq_s32(bits, fill(0x7fffffff)); }
  static Value higher(Value a, Value b) noexcept { return vmaxq_s32(a, b); }
  static Value add(Value a, Value b) noexcept { return vaddq_s32(a, b); }
  static Value ordered(Value bits) noexcept {
    const Value sign = vshrq_n_s32(bits, 31);
    return vsubq_s32(veorq_s32(magnitude(bits), sign), sign);
  }
  static Mask greater(Value a, Value b) noexcept { return vcgtq_s32(a, b); }
  static Mask is_zero(Value bits) noexcept { return vceqzq_s32(magnitude(bits)); }
  static bool any(Mask mask) noexcept { return vmaxvq_u32(mask) != 0; }
  static std::int64_t count(Mask mask) noexcept { return vaddvq_u32(vshrq_n_u32(mask, 31)); }
  static Value load_where(Mask mask, const void* from) noexcept {
    return vandq_s32(vreinterpretq_s32_u32(mask), load(from));
  }
  static Value decrement(Value sums, Mask mask) noexcept { return vaddq_s32(sums, vreinterpretq_s32_u32(mask)); }
  static void store_bytes(std::uint8_t* to, Mask first, Mask second) noexcept {
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(vmovn_u32(first), vmovn_u32(second)));
    vst1_u8(to, vand_u8(bytes, vdup_n_u8(1)));
  }
  static Value shuffle(Value value, Value from) noexcept {
    return vreinterpretq_s32_s16(Lanes16::shuffle(vreinterpretq_s16_s32(value), vreinterpretq_s16_s32(from)));
  }

  static Mask low(Lanes16::Mask mask) noexcept {
    return vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(vreinterpretq_s16_u16(mask))));
  }
  static Mask high(Lanes16::Mask mask) noexcept {
    return vreinterpretq_u32_s32(vmovl_s16(vget_high_s16(vreinterpretq_s16_u16(mask))));
  }

  static Value of_f16(const std::uint16_t* from) noexcept {
    return vreinterpretq_s32_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
  }
  static Value of_bf16(const std::uint16_t* from) noexcept {
    return vreinterpretq_s32_u32(vshll_n_u16(vld1_u16(from), 16));
  }
  static Value times(Value bits, const float* factors) noexcept {
    return vreinterpretq_s32_f32(vmulq_f32(vreinterpretq_f32_s32(bits), vld1q_f32(factors)));
  }
  static Lanes16::Value upper_halves(Value first, Value second) noexcept {
    return vuzp2q_s16(vreinterpretq_s16_s32(first), vreinterpretq_s16_s32(second));
  }
};

}  // namespace
}  // namespace stun_ext::detail
