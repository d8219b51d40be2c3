// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cluster/forest.hpp"
#include "cluster/ticker.hpp"
#include "distance/distance.hpp"
#include "distance/gram.hpp"
#include "low_memory/cluster_distance.hpp"
#include "low_memory/pair_store.hpp"
#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// How much of the rows a pass holds at a time.
struct PassPlan {
  std::int64_t block_rows;    ///< rows or centroids multiplied at a time
  std::int64_t super_blocks;  ///< blocks that stay packed while all others go by: so often less is the whole read
};

/// One pass over all pairs of clusters: those closer than the sink's limit, found by approximate products of blocks of
/// rows and decided by exact distances.
///
/// Single, complete and average: reduces the distances between rows. Ward and centroid: distances of centroids.
/// Single pairs are exact, and so are complete ones of clusters that are not small, and all where the sink takes no
/// bounds; others are lower bounds, which spare the distances that are never looked at.
class NearPairsPass {
 public:
  NearPairsPass(const ConstMatrixView& rows, const GramFrame& frame, Linkage method, const Forest& forest,
                const CentroidSums* sums, PassPlan plan);

  /// Bytes that a pass takes with `threads` threads, what `clusters` of n rows take among it.
  static double bytes(std::int64_t cols, Linkage method, PassPlan plan, int threads) noexcept;

  /// @param ids  the clusters, ascending.
  void run(const std::vector<std::uint32_t>& ids, PairConsumer& sink, Executor& executor, Ticker& ticker);

 private:
  static constexpr std::uint32_t kNone = 0xffffffffu;
  /// So many, and those of one more row, a thread collects before it hands them on.
  static constexpr std::size_t kPairsAtATime = 1024;

  /// Items that are multiplied together: of whole clusters, or some of one cluster that is larger than a block.
  struct Block {
    std::int64_t begin, end;                    ///< items
    std::uint32_t first_cluster, last_cluster;  ///< places; last included. Items are the clusters when by_centroid_
    bool is_partial;
    std::int64_t count() const noexcept { return end - begin; }
  };
  struct Workspace;
  /// Distances between rows that a thread collects before it computes them.
  static constexpr std::size_t exact_at_a_time(std::int64_t block_rows) noexcept {
    constexpr std::int64_t kMost = 8192;
    return static_cast<std::size_t>(block_rows < 256 ? block_rows * block_rows / 8 : kMost);
  }

  std::int64_t stride() const noexcept { return plan_.block_rows + kGramPadding; }
  void plan_blocks(const std::vector<std::uint32_t>& ids);
  void pack(const Block& block, GramPanel& panel, std::vector<double>& centroids) const;
  /// Every cluster that the block has items of is one row.
  static bool is_single(const Block& block) noexcept {
    return !block.is_partial && block.count() == block.last_cluster - block.first_cluster + 1;
  }
  void set_limits(const Block& block_a, const GramPanel& a, const Block& block_b, double limit, std::int64_t columns,
                  Workspace& work) const;
  void multiply(const Block& block_a, const GramPanel& a, const Block& block_b, double limit, Workspace& work) const;
  void reduce(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same, double limit,
              Workspace& work, PairConsumer& sink);
  void reduce_items(const Block& block_a, const Block& block_b, bool is_same, Workspace& work, double limit,
                    PairConsumer& sink);
  void add_item_pair(const Block& block_a, std::int64_t i, const Block& block_b, std::int64_t j, Workspace& work,
                     double limit, PairConsumer& sink);
  void reduce_groups(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same, Workspace& work,
                     double limit, PairConsumer& sink);
  static void hand_on_many(std::vector<NearPair>& found, PairConsumer& sink);
  double lower_bound(std::int64_t i, std::int64_t j, const Workspace& work) const;
  void add_extreme(const Block& block_a, const GramPanel& a, std::int64_t i0, std::int64_t i1, const Block& block_b,
                   std::int64_t j0, std::int64_t j1, std::uint32_t place_a, std::uint32_t place_b, bool is_partial,
                   Workspace& work) const;
  void take_extreme(double& squared, double other) const noexcept;
  void compute_exact(const Block& block_a, const Block& block_b, Workspace& work, double limit, PairConsumer& sink);
  void add_partial(std::uint32_t slot_a, std::uint32_t slot_b, double value);
  void emit_partials(PairConsumer& sink);

  const ConstMatrixView& rows_;
  const GramFrame& frame_;
  Linkage method_;
  bool by_centroid_;
  bool takes_bounds_ = false;
  const Forest& forest_;
  const CentroidSums* sums_;
  PassPlan plan_;
  std::vector<std::uint32_t> ids_;
  std::vector<std::uint32_t> items_;  ///< rows, cluster by cluster; or places of clusters by size, for their centroids
  std::vector<double> norms_;         ///< ‖x‖² of each row, for exact distances between rows
  std::vector<std::int64_t> start_;   ///< of each cluster in items_ (rows only), one more at the end
  std::vector<Block> blocks_;
  std::vector<std::uint32_t> big_;   ///< by place: index into partials_ of a cluster larger than a block, or kNone
  std::vector<std::uint32_t> bigs_;  ///< their places
  std::vector<std::vector<double>> partials_;
  std::unique_ptr<std::mutex[]> partial_mutex_;
};

/// What one thread needs.
struct NearPairsPass::Workspace {
  Workspace(std::int64_t block_rows, std::int64_t cols, const GramKernels& kernels)
      : panel(GramPanel::Side::b, block_rows, cols, kernels),
        dots(static_cast<std::size_t>((block_rows + kGramPadding) * (block_rows + kGramPadding))),
        limit_a(static_cast<std::size_t>(block_rows)),
        lower_a(limit_a.size()),
        half_b(limit_a.size()),
        folded(limit_a.size()) {
    found.reserve(kPairsAtATime + static_cast<std::size_t>(block_rows));
  }

  void reserve_exact(std::size_t count) {
    exact.reserve(count);
    candidates.reserve(count);
    row_pairs.reserve(count);
    wanted_of.reserve(count);
    squared.reserve(count);
  }

  GramPanel panel;                ///< block B
  std::vector<double> centroids;  ///< to pack it from
  std::vector<float> dots;        ///< rows of stride() products
  std::vector<float> limit_a;     ///< a pair may be near if dot > limit_a[i] + half_b[j]
  std::vector<float> lower_a;     ///< d² >= 2 (lower_a[i] + half_b[j] − dot), in the frame's scale
  std::vector<float> half_b;      ///< ‖x_j‖²/2
  std::vector<float> folded;
  std::vector<unsigned char> wanted;  ///< see multiply()
  double margin = 0.0;                ///< largest error of a squared distance in the block, in the frame's scale
  std::vector<NearPair> found;

  /// A pair of clusters whose distance is the largest (complete) or smallest of some between rows.
  struct Wanted {
    double squared;
    std::uint32_t place_a, place_b;
    bool is_partial;
  };
  /// One of these distances, by items of the blocks at hand.
  struct Candidate {
    std::uint32_t i, j, wanted;
  };
  std::vector<Wanted> exact;
  std::vector<Candidate> candidates;
  std::vector<std::uint32_t> first_of_row;  ///< to bring those of one row together
  std::vector<RowPair> row_pairs;
  std::vector<std::uint32_t> wanted_of;  ///< by pair
  std::vector<double> squared;           ///< by pair
};

}  // namespace stun_ext::detail
