// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "cluster_distance.hpp"
#include "forest.hpp"
#include "gram.hpp"
#include "stun_ext/executor.hpp"
#include "ticker.hpp"

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
  virtual void take(const std::vector<NearPair>& pairs) = 0;
};

/// Keeps the closest pairs that there is room for: which ones does not depend on the order in which they come.
class PairStore final : public PairConsumer {
 public:
  static constexpr double kBytesPerPair = 1.25 * sizeof(NearPair);

  PairStore(std::size_t capacity, double limit);

  double limit() const noexcept override { return limit_.load(std::memory_order_relaxed); }
  void take(const std::vector<NearPair>& pairs) override;

  /// Sorts them. All pairs below limit() are here then.
  std::vector<NearPair> finish();

  /// More came than there was room for.
  bool overflowed() const noexcept { return overflowed_; }
  std::size_t capacity() const noexcept { return capacity_; }

 private:
  void cut();

  std::size_t capacity_;
  std::atomic<double> limit_;
  bool overflowed_ = false;
  std::mutex mutex_;
  std::vector<NearPair> pairs_;
};

/// How much of the rows a pass holds at a time.
struct PassPlan {
  std::int64_t block_rows;    ///< rows or centroids multiplied at a time
  std::int64_t super_blocks;  ///< blocks that stay packed while all others go by: so often less is the whole read
};

/// One pass over all pairs of clusters: those closer than the sink's limit, found by approximate products of blocks of
/// rows and decided by exact distances.
///
/// Single, complete and average: reduces the distances between rows. Ward and centroid: distances of centroids.
/// Single and complete pairs are exact, so are pairs of rows; others are lower bounds.
class NearPairsPass {
 public:
  NearPairsPass(const ConstMatrixView& rows, const GramFrame& frame, Linkage method, const Forest& forest,
                const CentroidSums* sums, PassPlan plan);

  /// Bytes that a pass takes with `threads` threads, what `clusters` of n rows take among it.
  static double bytes(std::int64_t cols, Linkage method, PassPlan plan, int threads) noexcept;

  /// @param ids  the clusters, ascending.
  void run(const std::vector<std::uint32_t>& ids, PairConsumer& sink, Executor& executor, Ticker& ticker);

 private:
  /// Items that are multiplied together: of whole clusters, or some of one cluster that is larger than a block.
  struct Block {
    std::int64_t begin, end;                    ///< items
    std::uint32_t first_cluster, last_cluster;  ///< places; last included. Items are the clusters when by_centroid_
    bool is_partial;
    std::int64_t count() const noexcept { return end - begin; }
  };
  struct Workspace;

  std::int64_t stride() const noexcept { return plan_.block_rows + kGramPadding; }
  void plan_blocks(const std::vector<std::uint32_t>& ids);
  void pack(const Block& block, GramPanel& panel, std::vector<double>& centroids) const;
  void set_limits(const Block& block_a, const GramPanel& a, const Block& block_b, double limit, Workspace& work) const;
  void reduce(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same, Workspace& work,
              PairConsumer& sink);
  void reduce_items(const Block& block_a, const Block& block_b, bool is_same, Workspace& work, double limit) const;
  void reduce_groups(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same, Workspace& work,
                     double limit);
  void add_item_pair(std::int64_t item_a, std::int64_t item_b, std::int64_t column, Workspace& work,
                     double limit) const;
  double extreme(const GramPanel& a, const Block& block_a, std::int64_t i0, std::int64_t i1, const Block& block_b,
                 std::int64_t j0, std::int64_t j1, Workspace& work) const;
  void add_partial(std::uint32_t slot_a, std::uint32_t slot_b, double value);
  void emit_partials(PairConsumer& sink);

  const ConstMatrixView& rows_;
  const GramFrame& frame_;
  Linkage method_;
  bool by_centroid_;
  const Forest& forest_;
  const CentroidSums* sums_;
  PassPlan plan_;
  std::vector<std::uint32_t> ids_;
  std::vector<std::uint32_t> items_;  ///< rows, cluster by cluster; or places of clusters by size, for their centroids
  std::vector<std::int64_t> start_;   ///< of each cluster in items_ (rows only), one more at the end
  std::vector<Block> blocks_;
  std::vector<std::uint32_t> big_;   ///< by place: index into partials_ of a cluster larger than a block, or kNone
  std::vector<std::uint32_t> bigs_;  ///< their places
  std::vector<std::vector<double>> partials_;
  std::unique_ptr<std::mutex[]> partial_mutex_;
};

}  // namespace stun_ext::detail
