// SPDX-License-Identifier: Apache-2.0
#include "linkage_lanes.hpp"
#include "squeeze.hpp"

namespace stun_ext::detail {
namespace {

struct Lanes {
  using Value = double;
  using Mask = bool;
  static constexpr std::int64_t kWidth = 1;
  static Value fill(double value) noexcept { return value; }
  static Value places() noexcept { return 0.0; }
  static Value load(const double* from) noexcept { return *from; }
  static void store(double* to, Value value) noexcept { *to = value; }
  static Value lower(Value a, Value b) noexcept { return b < a ? b : a; }
  static Value higher(Value a, Value b) noexcept { return a < b ? b : a; }
  static Value root(Value value) noexcept { return __builtin_sqrt(value); }
  static Value reciprocal(Value value) noexcept { return 1.0 / value; }
  static double lowest_lane(Value value) noexcept { return value; }
  static Mask is_less(Value a, Value b) noexcept { return a < b; }
  static Mask is_equal(Value a, Value b) noexcept { return a == b; }
  static Mask exceeds(Value value, Value limit) noexcept { return !(value <= limit && value >= -limit); }
  static Value select(Mask mask, Value yes, Value no) noexcept { return mask ? yes : no; }
  static Mask either(Mask a, Mask b) noexcept { return a || b; }
  static bool any(Mask mask) noexcept { return mask; }
};

void mirror(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
            double* const* to) noexcept {
  for (std::int64_t i = begin; i < end; ++i) {
    for (std::int64_t w = 0; w < kMirrored; ++w) to[i][column + w] = from[w][i];
  }
}

}  // namespace

const LinkageKernels linkage_scalar = LinkageLanes<Lanes>::kernels(mirror, mirror, squeeze_by_bits);

}  // namespace stun_ext::detail
