// SPDX-License-Identifier: Apache-2.0
#include <arm_neon.h>

#include "linkage_lanes.hpp"
#include "squeeze.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = float64x2_t;
  using Mask = uint64x2_t;
  static constexpr std::int64_t kWidth = 2;
  static Value fill(double value) noexcept { return vdupq_n_f64(value); }
  static Value places() noexcept { return vcombine_f64(vdup_n_f64(0.0), vdup_n_f64(1.0)); }
  static Value load(const double* from) noexcept { return vld1q_f64(from); }
  static void store(double* to, Value value) noexcept { vst1q_f64(to, value); }
  static Value lower(Value a, Value b) noexcept { return select(is_less(b, a), b, a); }   // a if neither is less
  static Value higher(Value a, Value b) noexcept { return select(is_less(a, b), b, a); }  // a if neither is more
  static Value root(Value value) noexcept { return vsqrtq_f64(value); }
  static Value reciprocal(Value value) noexcept { return fill(1.0) / value; }
  static double lowest_lane(Value value) noexcept {
    return vgetq_lane_f64(lower(value, vextq_f64(value, value, 1)), 0);
  }
  static Mask is_less(Value a, Value b) noexcept { return vcltq_f64(a, b); }
  static Mask is_equal(Value a, Value b) noexcept { return vceqq_f64(a, b); }
  static Mask exceeds(Value value, Value limit) noexcept {  // NaN does
    return veorq_u64(vcleq_f64(vabsq_f64(value), limit), vdupq_n_u64(~std::uint64_t{0}));
  }
  static Value select(Mask mask, Value yes, Value no) noexcept { return vbslq_f64(mask, yes, no); }
  static Mask either(Mask a, Mask b) noexcept { return vorrq_u64(a, b); }
  static bool any(Mask mask) noexcept { return (vgetq_lane_u64(mask, 0) | vgetq_lane_u64(mask, 1)) != 0; }
};

void mirror(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
            double* const* to) noexcept {
  for (std::int64_t i = begin; i < end; i += Lanes::kWidth) {
    for (std::int64_t w = 0; w < kMirrored; w += Lanes::kWidth) {
      const float64x2_t a = vld1q_f64(from[w] + i), b = vld1q_f64(from[w + 1] + i);
      vst1q_f64(to[i] + column + w, vzip1q_f64(a, b));
      vst1q_f64(to[i + 1] + column + w, vzip2q_f64(a, b));
    }
  }
}

}  // namespace

const LinkageKernels linkage_neon = LinkageLanes<Lanes>::kernels(mirror, mirror, squeeze_by_bits);

}  // namespace stun_ext::detail
