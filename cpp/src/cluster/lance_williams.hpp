// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/recurrence.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::detail {

/// One distance at a time, for Recurrence.
struct OneLane {
  using Value = double;
  static double fill(double value) noexcept { return value; }
  static double lower(double a, double b) noexcept { return std::min(a, b); }
  static double higher(double a, double b) noexcept { return std::max(a, b); }
  static double root(double value) noexcept { return std::sqrt(value); }
  static double reciprocal(double value) noexcept { return 1.0 / value; }
};

/// Recurrence by method, for one distance: the bits that the kernels give.
inline double lance_williams(Linkage method, double d_xi, double d_yi, double d_xy, double size_x, double size_y,
                             double size_i) noexcept {
  using One = Recurrence<OneLane>;
  const One::Pair pair = {d_xy, size_x, size_y};
  switch (method) {
    case Linkage::single:
      return One::single(d_xi, d_yi, size_i, pair);
    case Linkage::complete:
      return One::complete(d_xi, d_yi, size_i, pair);
    case Linkage::average:
      return One::average(d_xi, d_yi, size_i, pair);
    case Linkage::ward:
      return One::ward(d_xi, d_yi, size_i, pair);
    case Linkage::centroid:
      break;
  }
  return One::centroid(d_xi, d_yi, size_i, pair);
}

}  // namespace stun_ext::detail
