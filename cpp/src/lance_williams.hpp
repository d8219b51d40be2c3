// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include "stun_ext/cluster.hpp"

namespace stun_ext::detail {

/// Distance of a cluster i to the one that x and y (x the lower id) become by merging at d_xy, by the recurrence of
/// Lance and Williams (1967) in SciPy's order of operations, so that heights agree to the last bits. Average, Ward and
/// single distances cannot fall below the lower of the two, nor average ones exceed the higher; holding them there
/// keeps heights monotone and ties tied in spite of rounding.
inline double lance_williams(Linkage method, double d_xi, double d_yi, double d_xy, double size_x, double size_y,
                             double size_i) noexcept {
  switch (method) {
    case Linkage::single:
      return d_xi < d_yi ? d_xi : d_yi;
    case Linkage::complete:
      return d_xi > d_yi ? d_xi : d_yi;
    case Linkage::average: {
      const double mean = (size_x * d_xi + size_y * d_yi) / (size_x + size_y);
      return std::min(std::max(std::min(d_xi, d_yi), mean), std::max(d_xi, d_yi));  // NaN becomes the lower
    }
    case Linkage::ward: {
      const double t = 1.0 / (size_x + size_y + size_i);
      const double squared =
          (size_i + size_x) * t * d_xi * d_xi + (size_i + size_y) * t * d_yi * d_yi - size_i * t * d_xy * d_xy;
      return std::max(std::sqrt(std::max(squared, 0.0)), std::min(d_xi, d_yi));
    }
    case Linkage::centroid:
      break;
  }
  const double size = size_x + size_y;
  const double squared =
      (((size_x * d_xi * d_xi) + (size_y * d_yi * d_yi)) - (size_x * size_y * d_xy * d_xy) / size) / size;
  return std::sqrt(std::max(squared, 0.0));
}

}  // namespace stun_ext::detail
