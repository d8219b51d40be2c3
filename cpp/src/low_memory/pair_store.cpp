// SPDX-License-Identifier: Apache-2.0
#include "low_memory/pair_store.hpp"

#include <algorithm>
#include <utility>

namespace stun_ext::detail {

// Around medians, until there is a part for each thread: no more memory, and one order whatever the number of threads.
void sort_pairs(std::vector<NearPair>& pairs, Executor& executor) {
  constexpr std::ptrdiff_t kWorthwhile = 1 << 14;
  using Part = std::pair<std::ptrdiff_t, std::ptrdiff_t>;
  std::vector<Part> parts = {{0, static_cast<std::ptrdiff_t>(pairs.size())}};
  const auto wanted = static_cast<std::size_t>(2 * executor.concurrency());
  while (executor.concurrency() > 1 && parts.size() < wanted && parts[0].second - parts[0].first > kWorthwhile) {
    std::vector<Part> halves(2 * parts.size());
    auto divide = [&](std::int64_t begin, std::int64_t end) {
      for (auto k = static_cast<std::size_t>(begin); k < static_cast<std::size_t>(end); ++k) {
        const auto [first, last] = parts[k];
        const std::ptrdiff_t middle = first + (last - first) / 2;
        std::nth_element(pairs.begin() + first, pairs.begin() + middle, pairs.begin() + last);
        halves[2 * k] = {first, middle};
        halves[2 * k + 1] = {middle, last};
      }
    };
    executor.parallel_for(static_cast<std::int64_t>(parts.size()), 1, divide);
    parts = std::move(halves);
  }
  auto sort = [&](std::int64_t begin, std::int64_t end) {
    for (auto k = static_cast<std::size_t>(begin); k < static_cast<std::size_t>(end); ++k) {
      std::sort(pairs.begin() + parts[k].first, pairs.begin() + parts[k].second);
    }
  };
  executor.parallel_for(static_cast<std::int64_t>(parts.size()), 1, sort);
}

PairStore::PairStore(std::size_t capacity, double limit) : capacity_(capacity), limit_(limit) {
  pairs_.reserve(capacity + capacity / 4);
}

// Keeps what is closer than the capacity_-th closest. Nothing that belongs to the closest of all is ever thrown away,
// so the end does not depend on what came first.
void PairStore::cut() {
  overflowed_ = true;
  const auto nth = pairs_.begin() + static_cast<std::ptrdiff_t>(capacity_);
  std::nth_element(pairs_.begin(), nth, pairs_.end());
  const double limit = nth->distance;
  pairs_.erase(std::remove_if(pairs_.begin(), pairs_.end(), [=](const NearPair& p) { return p.distance >= limit; }),
               pairs_.end());
  limit_.store(limit, std::memory_order_relaxed);
}

void PairStore::take(const std::vector<NearPair>& pairs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const NearPair& pair : pairs) {
    if (pair.distance >= limit()) continue;
    if (pairs_.size() == pairs_.capacity()) cut();
    if (pair.distance < limit()) pairs_.push_back(pair);
  }
}

std::vector<NearPair> PairStore::finish(Executor& executor) {
  if (pairs_.size() > capacity_) cut();
  sort_pairs(pairs_, executor);
  return std::move(pairs_);
}

}  // namespace stun_ext::detail
