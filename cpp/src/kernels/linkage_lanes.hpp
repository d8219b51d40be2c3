// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "linkage.hpp"
#include "recurrence.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {

/// The kernels but those that mirror and squeeze, for an instruction set that says how to compute with vectors of
/// L::kWidth doubles. L is a class of the including file's own (in an unnamed namespace), so nothing here is shared
/// between the files.
template <class L>
struct LinkageLanes {
  using Value = typename L::Value;
  using Mask = typename L::Mask;
  static constexpr std::int64_t kWidth = L::kWidth;
  static constexpr int kChains = 4;  ///< minima kept side by side, since each waits for its last comparison
  static constexpr std::int64_t kStep = kWidth * kChains;
  static constexpr double kInfinity = __builtin_huge_val();

  /// The minimum per lane. Earlier vectors win ties; places are counted in float64, which holds them exactly.
  struct Lowest {
    Value value = L::fill(kInfinity);
    Value place = L::fill(0.0);  ///< with the lane's own offset

    void take(Value candidate, Value at) noexcept {
      const Mask is_lower = L::is_less(candidate, value);
      value = L::select(is_lower, candidate, value);
      place = L::select(is_lower, at, place);
    }
  };

  static Minimum lowest_of(const Lowest* chains) noexcept {
    Value lowest = chains[0].value;
    STUN_EXT_UNROLL
    for (int c = 1; c < kChains; ++c) lowest = L::lower(lowest, chains[c].value);
    const double value = L::lowest_lane(lowest);
    if (value == kInfinity) return {kInfinity, 0};
    lowest = L::fill(value);
    Value first = L::fill(kInfinity);
    STUN_EXT_UNROLL
    for (int c = 0; c < kChains; ++c) {
      first = L::lower(first, L::select(L::is_equal(chains[c].value, lowest), chains[c].place, L::fill(kInfinity)));
    }
    return {value, static_cast<std::int64_t>(L::lowest_lane(first))};
  }

  /// The minimum of vector_at(k) over k in steps of a vector, and then of value_at(k) for the rest.
  template <class VectorAt, class ValueAt>
  static Minimum minimum(std::int64_t count, const VectorAt& vector_at, const ValueAt& value_at) noexcept {
    Lowest chains[kChains];
    Value places = L::places();
    const Value step = L::fill(static_cast<double>(kWidth));
    std::int64_t k = 0;
    for (; k + kStep <= count; k += kStep) {
      STUN_EXT_UNROLL
      for (int c = 0; c < kChains; ++c) {
        chains[c].take(vector_at(k + c * kWidth), places);
        places = places + step;
      }
    }
    for (; k + kWidth <= count; k += kWidth) {
      chains[0].take(vector_at(k), places);
      places = places + step;
    }
    Minimum best = lowest_of(chains);
    for (; k < count; ++k) {
      const double value = value_at(k);
      if (value < best.value) best = {value, k};
    }
    return best;
  }

  using RecurrenceOf = Value (*)(Value, Value, Value, const typename Recurrence<L>::Pair&) noexcept;

  template <RecurrenceOf recurrence>
  static Minimum update(const MergedRow& row) noexcept {
    const typename Recurrence<L>::Pair pair = {L::fill(row.d_xy), L::fill(row.size_x), L::fill(row.size_y)};
    const auto vector_at = [&](std::int64_t k) noexcept {
      const Value distance = recurrence(L::load(row.d_xi + k), L::load(row.d_yi + k), L::load(row.size_i + k), pair);
      L::store(row.out + k, distance);
      return distance + L::load(row.penalty + k);
    };
    return minimum(row.count, vector_at, [](std::int64_t) noexcept { return kInfinity; });  // no rest
  }

  static Minimum lowest_of_row(const double* values, const double* penalty, std::int64_t count) noexcept {
    return minimum(
        count, [=](std::int64_t k) noexcept { return L::load(values + k) + L::load(penalty + k); },
        [=](std::int64_t k) noexcept { return values[k] + penalty[k]; });
  }

  static Minimum lowest(const double* values, std::int64_t count) noexcept {
    return minimum(
        count, [=](std::int64_t k) noexcept { return L::load(values + k); },
        [=](std::int64_t k) noexcept { return values[k]; });
  }

  static Minimum lowest_within(const double* values, std::int64_t count, double limit, bool& is_within) noexcept {
    const Value highest = L::fill(limit);
    Mask is_beyond = L::exceeds(L::fill(0.0), highest);
    bool is_rest_within = true;
    const Minimum best = minimum(
        count,
        [&](std::int64_t k) noexcept {
          const Value value = L::load(values + k);
          is_beyond = L::either(is_beyond, L::exceeds(value, highest));
          return value;
        },
        [&](std::int64_t k) noexcept {
          is_rest_within = is_rest_within && values[k] <= limit && values[k] >= -limit;
          return values[k];
        });
    is_within = is_rest_within && !L::any(is_beyond);
    return best;
  }

  static std::int64_t not_above(const double* values, const double* heights, std::int64_t count, double height,
                                std::int32_t* places) noexcept {
    const Value least = L::fill(height);
    std::int64_t found = 0;
    const auto take = [&](std::int64_t begin, std::int64_t end) noexcept {
      for (std::int64_t k = begin; k < end; ++k) {
        places[found] = static_cast<std::int32_t>(k);
        found += values[k] <= (heights[k] > height ? heights[k] : height);
      }
    };
    const auto is_not_above = [&](std::int64_t k) noexcept {
      const Value value = L::load(values + k), highest = L::higher(L::load(heights + k), least);
      return L::either(L::is_less(value, highest), L::is_equal(value, highest));
    };
    std::int64_t k = 0;
    for (; k + kStep <= count; k += kStep) {
      Mask is_any = is_not_above(k);
      STUN_EXT_UNROLL
      for (int c = 1; c < kChains; ++c) is_any = L::either(is_any, is_not_above(k + c * kWidth));
      if (L::any(is_any)) take(k, k + kStep);
    }
    take(k, count);
    return found;
  }

  static std::int64_t find(const double* values, std::int64_t begin, std::int64_t end, double value) noexcept {
    const Value sought = L::fill(value);
    std::int64_t k = begin;
    for (; k + kStep <= end; k += kStep) {
      Mask is_found = L::is_equal(L::load(values + k), sought);
      STUN_EXT_UNROLL
      for (int c = 1; c < kChains; ++c) {
        is_found = L::either(is_found, L::is_equal(L::load(values + k + c * kWidth), sought));
      }
      if (L::any(is_found)) break;
    }
    while (k + kWidth <= end && !L::any(L::is_equal(L::load(values + k), sought))) k += kWidth;
    while (k < end && values[k] != value) ++k;
    return k;
  }

  static Minimum approach(const double* row, const double* penalty, std::int64_t count, double* near) noexcept {
    const auto vector_at = [=](std::int64_t k) noexcept {
      const Value nearer = L::lower(L::load(near + k), L::load(row + k));
      L::store(near + k, nearer);
      return nearer + L::load(penalty + k);
    };
    const auto value_at = [=](std::int64_t k) noexcept {
      if (row[k] < near[k]) near[k] = row[k];
      return near[k] + penalty[k];
    };
    return minimum(count, vector_at, value_at);
  }

  static bool copy_within(const double* from, std::int64_t count, double limit, double* to) noexcept {
    const Value highest = L::fill(limit);
    Mask is_beyond = L::exceeds(L::fill(0.0), highest);
    std::int64_t k = 0;
    for (; k + kWidth <= count; k += kWidth) {
      const Value value = L::load(from + k);
      L::store(to + k, value);
      is_beyond = L::either(is_beyond, L::exceeds(value, highest));
    }
    bool is_within = !L::any(is_beyond);
    for (; k < count; ++k) {
      to[k] = from[k];
      is_within = is_within && from[k] <= limit && from[k] >= -limit;
    }
    return is_within;
  }

  static constexpr LinkageKernels kernels(decltype(LinkageKernels::mirror) mirror,
                                          decltype(LinkageKernels::mirror) mirror_streaming,
                                          decltype(LinkageKernels::squeeze) squeeze) noexcept {
    using R = Recurrence<L>;
    return {update<R::single>,
            update<R::complete>,
            update<R::average>,
            update<R::ward>,
            update<R::centroid>,
            lowest_of_row,
            lowest,
            lowest_within,
            not_above,
            find,
            approach,
            copy_within,
            mirror,
            mirror_streaming,
            squeeze};
  }
};

}  // namespace stun_ext::detail
