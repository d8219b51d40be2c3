// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// A pair of clusters, by their places among those that a pass is about.
struct NearPair {
  double distance;
  std::uint32_t low : 31;
  std::uint32_t is_bound : 1;  ///< the distance is only known to be at least this
  std::uint32_t high;

  friend bool operator<(const NearPair& a, const NearPair& b) noexcept {
    if (a.distance != b.distance) return a.distance < b.distance;
    return a.low != b.low ? a.low < b.low : a.high < b.high;
  }
};

/// Where a pass puts what it finds; from several threads.
class PairConsumer {
 public:
  virtual ~PairConsumer() = default;
  /// Pairs at this distance or above are not wanted; may fall while a pass runs.
  virtual double limit() const noexcept = 0;
  /// Whether a lower bound will do: a pair then comes if its bound is below the limit.
  virtual bool takes_bounds() const noexcept { return false; }
  virtual void take(const std::vector<NearPair>& pairs) = 0;
};

/// Sorts in place; different pairs only.
void sort_pairs(std::vector<NearPair>& pairs, Executor& executor);

/// Keeps the closest pairs that there is room for: which ones does not depend on the order in which they come.
class PairStore final : public PairConsumer {
 public:
  static constexpr double kBytesPerPair = 1.25 * sizeof(NearPair);

  PairStore(std::size_t capacity, double limit);

  double limit() const noexcept override { return limit_.load(std::memory_order_relaxed); }
  bool takes_bounds() const noexcept override { return true; }
  void take(const std::vector<NearPair>& pairs) override;

  /// Sorts them. All pairs below limit() are here then.
  std::vector<NearPair> finish(Executor& executor);

  /// More came than there was room for.
  bool overflowed() const noexcept { return overflowed_; }

 private:
  void cut();

  std::size_t capacity_;
  std::atomic<double> limit_;
  bool overflowed_ = false;
  std::mutex mutex_;
  std::vector<NearPair> pairs_;
};

}  // namespace stun_ext::detail
