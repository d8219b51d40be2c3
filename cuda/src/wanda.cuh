// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "scores.cuh"

/// The parts of wanda.cu: how a block of threads holds a row, counts in it, and finds where to cut it.
namespace stun_ext::cuda::detail {

constexpr int kItems = 32;          ///< elements of a row that one thread holds, so that a mask of them is a word
constexpr int kWords = kItems / 2;  ///< two uppers each
constexpr int kMostListed = 512;    ///< uppers equal to the cut's that a list takes; more are searched in place
constexpr int kListedPerWarp = 64;

/// Memory that the threads of a block share.
struct Shared {
  std::uint32_t sums[2][32];
  std::uint32_t list[kMostListed + 4];
  std::uint32_t listed;
};

/// Sums over the block with one barrier each: consecutive sums take turns in two places.
class BlockSum {
 public:
  __device__ explicit BlockSum(Shared& shared) : shared_(shared) {}

  __device__ std::uint32_t sum(std::uint32_t value) {
    value = __reduce_add_sync(0xffffffffu, value);
    return across([](std::uint32_t v) { return __reduce_add_sync(0xffffffffu, v); }, value);
  }
  __device__ std::uint32_t max(std::uint32_t value) {
    value = __reduce_max_sync(0xffffffffu, value);
    return across([](std::uint32_t v) { return __reduce_max_sync(0xffffffffu, v); }, value);
  }
  /// The sum of the threads before this one.
  __device__ std::uint32_t sum_before(std::uint32_t value) {
    const std::uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    std::uint32_t upto = value;
    for (std::uint32_t step = 1; step < 32; step *= 2) {
      const std::uint32_t other = __shfl_up_sync(0xffffffffu, upto, step);
      if (lane >= step) upto += other;
    }
    const std::uint32_t before =
        across([&](std::uint32_t v) { return __reduce_add_sync(0xffffffffu, lane < warp ? v : 0u); },
               __shfl_sync(0xffffffffu, upto, 31));
    return before + upto - value;
  }

 private:
  template <class Reduce>
  __device__ std::uint32_t across(Reduce&& reduce, std::uint32_t value) {
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    std::uint32_t* sums = shared_.sums[turn_];
    turn_ ^= 1;
    if (lane == 0) sums[warp] = value;
    __syncthreads();
    return reduce(lane < static_cast<int>(blockDim.x) >> 5 ? sums[lane] : 0u);
  }

  Shared& shared_;
  int turn_ = 0;
};

/// Bytes chosen by the selector's nibbles from (low, high); with its highest bit a nibble asks for the byte's sign in
/// all of the byte's bits, which __byte_perm ignores.
template <unsigned selector>
__device__ inline std::uint32_t permute(std::uint32_t low, std::uint32_t high) {
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "n"(selector));
  return result;
}

/// Both halves of a word as 0xffff where uppers[half] <= limit, limit + 0x8000 being both halves of `biased`: uppers
/// have 15 bits, so that the difference keeps the bias exactly there and borrows nothing.
__device__ inline std::uint32_t at_most(std::uint32_t biased, std::uint32_t uppers) {
  return permute<0xbb99>(biased - uppers, 0);  // each half's sign, in both of its bytes
}
__device__ inline std::uint32_t biased(int limit) { return static_cast<std::uint32_t>(limit + 0x8000) * 0x10001u; }

/// How many uppers of this thread are at most the limit.
__device__ inline std::uint32_t count_at_most(const std::uint32_t (&uppers)[kWords], int limit) {
  const std::uint32_t pivot = biased(limit);
  int count = 0;
#pragma unroll
  for (int k = 0; k < kWords; k += 2) {
    const std::uint32_t signs = permute<0xfdb9>(pivot - uppers[k], pivot - uppers[k + 1]);
    count = __dp4a(static_cast<int>(signs), -1, count);
  }
  return static_cast<std::uint32_t>(count);
}

/// Which uppers of this thread equal `value`: bit k is the low half of word k, bit 16 + k its high half.
__device__ inline std::uint32_t equal_items(const std::uint32_t (&uppers)[kWords], int value) {
  const std::uint32_t both = static_cast<std::uint32_t>(value) * 0x10001u;
  std::uint32_t items = 0;
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    const std::uint32_t differs = (uppers[k] ^ both) + 0x7fff7fffu;  // the highest bit of each half
    items = (items >> 1) | (~differs & 0x80008000u);
  }
  return items;
}

/// The halves of word k that are among the items, as 0xffff.
__device__ inline std::uint32_t halves(std::uint32_t items, int k) { return ((items >> k) & 0x00010001u) * 0xffffu; }

/// Where a row is cut: uppers below `limit` go, and `ties` of the `equal` ones that have it.
struct Cut {
  int limit;
  int equal;
  int ties;
};

/// Finds the `wanted`-th lowest upper of a row. Rows of a matrix are cut at similar scores, so the search begins around
/// the row before's, which changes the time alone: most rows take three passes of two counts.
class CutSearch {
 public:
  __device__ Cut find(const std::uint32_t (&uppers)[kWords], int wanted, int cols, BlockSum& block) {
    // Fewer than `wanted` uppers are at most `low`, and at least as many at most `high`.
    int low = -1, high = kTop, at_low = 0, at_high = cols;
    int step = step_;
    int rounds = 0;
    while (high - low > 1 && at_high != wanted) {
      int first, second;
      const int width = high - low;
      if (hint_ >= 0 && rounds < kGuesses && (low == -1 || high == kTop)) {
        if (low == -1 && high == kTop) {
          first = hint_ - step, second = hint_ + step;
        } else if (low == -1) {  // beyond the last guesses, ever further
          step *= 4;
          first = high - 4 * step, second = high - step;
        } else {
          step *= 4;
          first = low + step, second = low + 4 * step;
        }
      } else if (width <= kNarrow && rounds < 2 * kGuesses) {
        const float share =
            __fdividef(static_cast<float>(wanted - at_low) - 0.5f, static_cast<float>(at_high - at_low));
        second = low + static_cast<int>(share * static_cast<float>(width)) + 1;
        first = second - 1;
      } else {
        first = low + width / 3, second = high - width / 3;
      }
      first = min(max(first, low + 1), high - 1);
      second = min(max(second, first), high - 1);
      const std::uint32_t own = count_at_most(uppers, first);
      const std::uint32_t counts =
          block.sum(own | (second == first ? own : count_at_most(uppers, second)) << 16);  // 32,768 fit
      const int at_first = static_cast<int>(counts & 0xffffu), at_second = static_cast<int>(counts >> 16);
      if (at_first >= wanted) {
        high = first, at_high = at_first;
      } else if (at_second >= wanted) {
        low = first, at_low = at_first, high = second, at_high = at_second;
      } else {
        low = second, at_low = at_second;
      }
      ++rounds;
    }
    step_ = hint_ < 0 ? kFirstStep : min(max(2 * abs(high - hint_), kFirstStep / 2), 2 * kFirstStep);
    hint_ = high;
    if (at_high == wanted) return {high + 1, 0, 0};
    return {high, at_high - at_low, wanted - at_low};
  }

 private:
  static constexpr int kTop = static_cast<int>(kInfiniteUpper);
  static constexpr int kGuesses = 4;   ///< passes that guess before the bracket is halved, whatever the data
  static constexpr int kNarrow = 128;  ///< a bracket that a straight line describes: half a power of two
  static constexpr int kFirstStep = 32;
  int hint_ = -1;
  int step_ = kFirstStep;
};

}  // namespace stun_ext::cuda::detail
