// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "nm.hpp"
#include "prefetch.hpp"

namespace stun_ext::detail {
namespace {

/// The kernels of an instruction set with such vectors (lanes_<isa>.hpp).
template <class L, int m>
struct NmLanes {
  using Bits = typename L::Bits;
  using Value = typename L::Value;
  static constexpr int kBlock = m * static_cast<int>(sizeof(Bits));  ///< bytes

  template <class Lane>
  struct alignas(64) Table {
    Lane lanes[64 / sizeof(Lane)];
  };

  /// Lane i of every block gets lane (i + r) % m.
  template <int r>
  static Value rotated(Value x) noexcept {
    constexpr int kBytes = r * static_cast<int>(sizeof(Bits));
    if constexpr (kBlock > 16) {
      return L::template rotated<kBlock, kBytes>(x);
    } else {
      static constexpr auto kFrom = [] {
        Table<std::uint8_t> table = {};
        for (int i = 0; i < 64; ++i) {
          table.lanes[i] = static_cast<std::uint8_t>(i % 16 / kBlock * kBlock + (i + kBytes) % kBlock);
        }
        return table;
      }();
      return L::shuffle(x, L::load(kFrom.lanes));
    }
  }

  /// All bits in the lanes that are left, in their block, of the lane that a rotation by r brings to them.
  template <int r>
  static Value left() noexcept {
    static constexpr auto kLeft = [] {
      Table<Bits> table = {};
      for (int i = 0; i < static_cast<int>(64 / sizeof(Bits)); ++i) {
        table.lanes[i] = static_cast<Bits>(i % m < m - r ? ~Bits{0} : Bits{0});
      }
      return table;
    }();
    return L::load(kLeft.lanes);
  }

  /// Minus how many come before, of those that rotations from r on bring.
  template <int r>
  static Value count_before(Value sums, Value x) noexcept {
    if constexpr (r == m) {
      return sums;
    } else {
      const Value limit = L::add(x, left<r>());  // what is equal and to the right comes before, too
      return count_before<r + 1>(L::decrement(sums, L::greater(rotated<r>(x), limit)), x);
    }
  }

  template <class Rest>
  static bool keep_highest(const Bits* scores, std::int64_t count, std::int64_t n, Bits limit, std::uint8_t* mask,
                           Rest&& rest) noexcept {
    constexpr std::int64_t kStep = 2 * L::kWidth;
    const Value least = L::fill(static_cast<int>(-n));
    Value highest = L::fill(0);
    std::int64_t c = 0;
    for (; c + kStep <= count; c += kStep) {
      prefetch<2048>(scores + c, kStep * static_cast<std::int64_t>(sizeof(Bits)));
      prefetch<2048>(mask + c, kStep);
      const Value first = L::load(scores + c), second = L::load(scores + c + L::kWidth);
      highest = L::higher(highest, L::higher(L::magnitude(first), L::magnitude(second)));
      const Value zero = L::fill(0);
      L::store_bytes(mask + c, L::greater(count_before<1>(zero, L::ordered(first)), least),
                     L::greater(count_before<1>(zero, L::ordered(second)), least));
    }
    const bool is_above = L::any(L::greater(highest, L::fill(static_cast<int>(limit))));
    return rest(scores + c, count - c, mask + c) || is_above;
  }
};

template <class L, bool (*NmKernels::*scalar)(const typename L::Bits*, std::int64_t, NmPattern, typename L::Bits,
                                              std::uint8_t*, std::int64_t*) noexcept>
bool keep_highest(const typename L::Bits* scores, std::int64_t count, NmPattern pattern, typename L::Bits limit,
                  std::uint8_t* mask, std::int64_t* order) noexcept {
  using Bits = typename L::Bits;
  constexpr int kWidest = L::kWidestBlock / static_cast<int>(sizeof(Bits));
  const auto rest = [=](const Bits* from, std::int64_t left, std::uint8_t* to) noexcept {
    return (nm_scalar.*scalar)(from, left, pattern, limit, to, order);
  };
  if (pattern.m == 2) return NmLanes<L, 2>::keep_highest(scores, count, pattern.n, limit, mask, rest);
  if (pattern.m == 4) return NmLanes<L, 4>::keep_highest(scores, count, pattern.n, limit, mask, rest);
  if constexpr (kWidest >= 8) {
    if (pattern.m == 8) return NmLanes<L, 8>::keep_highest(scores, count, pattern.n, limit, mask, rest);
  }
  if constexpr (kWidest >= 16) {
    if (pattern.m == 16) return NmLanes<L, 16>::keep_highest(scores, count, pattern.n, limit, mask, rest);
  }
  return rest(scores, count, mask);
}

template <class Narrow, class Wide>
constexpr NmKernels nm_kernels() noexcept {
  return {keep_highest<Narrow, &NmKernels::keep_highest_u16>, keep_highest<Wide, &NmKernels::keep_highest_u32>};
}

}  // namespace
}  // namespace stun_ext::detail
