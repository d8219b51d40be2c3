// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "low_memory/low_memory_linkage.hpp"
#include "low_memory/near_pairs.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace {

constexpr const char* kOperation = "star_clusters_rows";

/// Keeps all pairs, and refuses when there are more than it has room for.
class AllPairs final : public detail::PairConsumer {
 public:
  static constexpr double kBytesPerPair = sizeof(detail::NearPair) + 2.0 * sizeof(std::uint32_t) + 1.0;

  AllPairs(std::size_t capacity, double threshold) : capacity_(capacity), threshold_(threshold) {}
  double limit() const noexcept override { return threshold_; }
  void take(const std::vector<detail::NearPair>& pairs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pairs_.size() + pairs.size() > capacity_) {
      detail::fail(kOperation, "memory_limit must hold all pairs below the threshold: more than ", capacity_,
                   " are; lower the threshold, or allow ", kBytesPerPair, " bytes for each");
    }
    if (pairs_.capacity() < pairs_.size() + pairs.size()) {
      pairs_.reserve(std::min(capacity_, std::max(2 * pairs_.capacity(), pairs_.size() + pairs.size())));
    }
    pairs_.insert(pairs_.end(), pairs.begin(), pairs.end());
  }
  std::vector<detail::NearPair> sorted() {
    std::sort(pairs_.begin(), pairs_.end());
    return std::move(pairs_);
  }

 private:
  std::size_t capacity_;
  double threshold_;
  std::mutex mutex_;
  std::vector<detail::NearPair> pairs_;
};

/// Which pairs are near, as sorted lists of neighbours; a blocked one counts as far. Rows are fewer than 2^31, so that
/// there is a bit for that.
class NearGraph {
 public:
  NearGraph(const std::vector<detail::NearPair>& pairs, std::size_t n) : start_(n + 1, 0) {
    for (const detail::NearPair& pair : pairs) {
      ++start_[pair.low + 1];
      ++start_[pair.high + 1];
    }
    std::partial_sum(start_.begin(), start_.end(), start_.begin());
    neighbour_.resize(2 * pairs.size());
    std::vector<std::size_t> place(start_.begin(), start_.end() - 1);
    for (const detail::NearPair& pair : pairs) {
      neighbour_[place[pair.low]++] = pair.high;
      neighbour_[place[pair.high]++] = pair.low;
    }
    for (std::size_t row = 0; row < n; ++row) std::sort(begin(row), begin(row + 1));
  }

  bool has(std::uint32_t a, std::uint32_t b) {
    const auto at = find(a, b);
    return at != begin(a + 1) && *at == b;
  }
  /// Of two that are near.
  void block(std::uint32_t a, std::uint32_t b) {
    *find(a, b) |= kBlocked;
    *find(b, a) |= kBlocked;
  }

 private:
  static constexpr std::uint32_t kBlocked = 0x80000000u;
  std::vector<std::uint32_t>::iterator begin(std::size_t row) {
    return neighbour_.begin() + static_cast<std::ptrdiff_t>(start_[row]);
  }
  std::vector<std::uint32_t>::iterator find(std::size_t row, std::uint32_t other) {
    return std::lower_bound(begin(row), begin(row + 1), other,
                            [](std::uint32_t entry, std::uint32_t wanted) { return (entry & ~kBlocked) < wanted; });
  }
  std::vector<std::size_t> start_;
  std::vector<std::uint32_t> neighbour_;
};

}  // namespace

std::int64_t star_clusters_rows(ConstMatrixView rows, double threshold, std::int64_t min_clusters,
                                Span<std::int64_t> labels, const LinkageOptions& options, Executor& executor) {
  const std::int64_t n = rows.rows;
  if (std::isnan(threshold)) detail::fail(kOperation, "threshold must not be NaN");
  if (options.n_clusters != 1 || options.height != std::numeric_limits<double>::infinity()) {
    detail::fail(kOperation, "n_clusters and height are not options of the star rule: use min_clusters and threshold");
  }
  detail::check_memory_limit(kOperation, options.memory_limit);
  if (n > 0 && (min_clusters < 1 || min_clusters > n)) {
    detail::fail(kOperation, "min_clusters must be in [1, ", n, "], got ", min_clusters);
  }
  if (static_cast<std::int64_t>(labels.size()) != n) {
    detail::fail(kOperation, "labels must hold one value for each of the ", n, " rows, got ", labels.size());
  }
  const double usual = 2.0 * (1 << 30) + 1024.0 * static_cast<double>(std::max<std::int64_t>(n, 1));
  const detail::MemoryPlan plan =
      detail::MemoryPlan::of(kOperation, options.memory_limit, usual, rows, Linkage::single, executor.concurrency());
  detail::check_rows(kOperation, rows, executor);  // the one check that reads them
  detail::Ticker ticker(kOperation, options.progress);
  AllPairs consumer(static_cast<std::size_t>(plan.matrix / AllPairs::kBytesPerPair), threshold);
  {
    const detail::Forest forest(n);
    const detail::GramFrame frame = detail::frame_of(kOperation, rows, executor);
    std::vector<std::uint32_t> ids(static_cast<std::size_t>(n));
    std::iota(ids.begin(), ids.end(), 0u);
    detail::NearPairsPass(rows, frame, Linkage::single, forest, nullptr, {plan.block_rows, plan.super_blocks})
        .run(ids, consumer, executor, ticker);
  }
  const std::vector<detail::NearPair> pairs = consumer.sorted();
  NearGraph graph(pairs, static_cast<std::size_t>(n));

  // The rule as star_clusters has it: a pair that fails its test is infinitely far in later ones.
  std::vector<std::vector<std::uint32_t>> members(static_cast<std::size_t>(n));
  for (std::uint32_t row = 0; row < members.size(); ++row) members[row].assign(1, row);
  std::iota(labels.begin(), labels.end(), std::int64_t{0});
  const auto is_near_all = [&](std::uint32_t row, const std::vector<std::uint32_t>& others) {
    return std::all_of(others.begin(), others.end(), [&](std::uint32_t other) { return graph.has(row, other); });
  };
  std::int64_t clusters = n;
  for (const detail::NearPair& pair : pairs) {
    if (clusters <= min_clusters) break;
    const std::uint32_t i = pair.low, j = pair.high;
    auto lower = static_cast<std::size_t>(labels[i]), higher = static_cast<std::size_t>(labels[j]);
    if (lower == higher) continue;
    if (!is_near_all(j, members[lower]) || !is_near_all(i, members[higher])) {
      graph.block(i, j);
      continue;
    }
    if (lower > higher) std::swap(lower, higher);
    for (const std::uint32_t member : members[higher]) labels[member] = static_cast<std::int64_t>(lower);
    members[lower].insert(members[lower].end(), members[higher].begin(), members[higher].end());
    members[higher] = {};
    --clusters;
  }
  return clusters;
}

}  // namespace stun_ext
