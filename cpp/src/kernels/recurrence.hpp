// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace stun_ext::detail {

/// Distance of a cluster i to the one that x and y (x the lower id) become by merging at d_xy, by the recurrence of
/// Lance and Williams (1967) in SciPy's order of operations, so that heights agree to the last bits. Average, Ward and
/// single distances cannot fall below the lower of the two, nor average ones exceed the higher; holding them there
/// keeps heights monotone and ties tied in spite of rounding.
///
/// L says how to compute with one distance or several at once (L::Value): the operators of arithmetic, L::fill(double),
/// L::lower(a, b), which is b < a ? b : a, L::higher(a, b), which is a < b ? b : a, and L::root.
template <class L>
struct Recurrence {
  using Value = typename L::Value;

  /// What is the same for every cluster i.
  struct Pair {
    Value d_xy, size_x, size_y;
  };

  static Value single(Value d_xi, Value d_yi, Value, const Pair&) noexcept { return L::lower(d_yi, d_xi); }

  static Value complete(Value d_xi, Value d_yi, Value, const Pair&) noexcept { return L::higher(d_yi, d_xi); }

  static Value average(Value d_xi, Value d_yi, Value, const Pair& pair) noexcept {
    const Value mean = (pair.size_x * d_xi + pair.size_y * d_yi) / (pair.size_x + pair.size_y);
    // NaN, from values that overflow, becomes the lower.
    return L::lower(L::higher(L::lower(d_xi, d_yi), mean), L::higher(d_xi, d_yi));
  }

  static Value ward(Value d_xi, Value d_yi, Value size_i, const Pair& pair) noexcept {
    const Value t = L::reciprocal(pair.size_x + pair.size_y + size_i);
    const Value squared = (size_i + pair.size_x) * t * d_xi * d_xi + (size_i + pair.size_y) * t * d_yi * d_yi -
                          size_i * t * pair.d_xy * pair.d_xy;
    return L::higher(L::root(L::higher(squared, L::fill(0.0))), L::lower(d_xi, d_yi));
  }

  static Value centroid(Value d_xi, Value d_yi, Value, const Pair& pair) noexcept {
    const Value size = pair.size_x + pair.size_y;
    const Value squared = (((pair.size_x * d_xi * d_xi) + (pair.size_y * d_yi * d_yi)) -
                           (pair.size_x * pair.size_y * pair.d_xy * pair.d_xy) / size) /
                          size;
    return L::root(L::higher(squared, L::fill(0.0)));
  }
};

}  // namespace stun_ext::detail
