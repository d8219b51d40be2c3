// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "agglomerate.hpp"
#include "cluster_distance.hpp"
#include "forest.hpp"
#include "near_pairs.hpp"
#include "ticker.hpp"

namespace stun_ext::detail {

/// Merges clusters, by any linkage but single, of which only the near pairs are known: all that are closer than
/// `limit`, which every other pair is not. So every merge below the limit is the one that an agglomeration with all
/// distances would do, and in its order.
///
/// A distance that the recurrence would take from an unknown one is bounded instead: unknown distances are at least the
/// limit. A bound that comes to the top is replaced by the distance computed from rows (complete linkage never needs
/// that). Pairs that are known belong, as edges of a graph, to their newer cluster, which knows the nearest of its own.
/// Centroid distances can fall below those they come from: of two unknown pairs d² >= limit² − V(z) − V(i), where V is
/// the variance that a cluster has gained in this run, and where that is not enough a cluster learns all its distances.
class SparseAgglomeration {
 public:
  static constexpr double kBytesPerPair = 24.0;  ///< of edges and lists, the pairs' own bytes among them

  /// @param pairs  sorted, all below `limit`.
  /// @param ids    the clusters that pairs count, ascending; all clusters of the forest.
  /// @param distance, sums  for average, Ward and centroid; sums for the last two.
  SparseAgglomeration(std::vector<NearPair> pairs, double limit, const std::vector<std::uint32_t>& ids, Linkage method,
                      Forest& forest, ClusterDistance& distance, CentroidSums* sums);

  /// Merges until `stop`, or until the limit is reached. Returns whether `stop` was.
  bool run(Stop stop, Ticker& ticker);

  /// The clusters that are left, ascending.
  std::vector<std::uint32_t> remaining() const;

 private:
  struct Edge {
    double distance;
    std::uint32_t low;  ///< places; kGone: no edge any more
    std::uint32_t high : 31;
    std::uint32_t is_bound : 1;
  };
  /// An edge at the time when it was the nearest of its newer cluster.
  struct Entry {
    double distance;
    std::uint32_t low, high, edge;
    bool operator>(const Entry& other) const noexcept {
      if (distance != other.distance) return distance > other.distance;
      return low != other.low ? low > other.low : high > other.high;
    }
  };
  static constexpr std::uint32_t kGone = 0xffffffffu;

  bool next(Entry& entry);
  bool is_current(const Entry& entry) const noexcept;
  void push(const Entry& entry);
  void push_nearest(std::uint32_t place);
  void merge(std::uint32_t low, std::uint32_t high, double height);
  bool take_over(std::uint32_t index, const std::uint32_t* with, std::uint32_t x, std::uint32_t y, std::uint32_t z,
                 double height, bool from_x);
  bool knows_enough(double distance);
  void learn_all(std::uint32_t place);
  double unknown_bound(std::uint32_t a, std::uint32_t b) const noexcept;

  Linkage method_;
  double limit_;
  Forest& forest_;
  ClusterDistance& distance_;
  CentroidSums* sums_;
  std::uint32_t first_count_;      ///< places below were there at the start
  std::vector<std::uint32_t> id_;  ///< by place, ascending
  std::vector<double> size_;       ///< by place; 0: merged away
  std::vector<Edge> edges_;
  std::size_t next_edge_ = 0;                     ///< of the edges between first clusters, in order
  std::size_t first_edges_;                       ///< how many of them are sorted
  std::vector<std::vector<std::uint32_t>> list_;  ///< edges of a place
  std::vector<std::uint32_t> mark_;               ///< by place: edge to x while x and y merge, or kGone
  std::vector<Entry> heap_;
  std::int64_t active_;
  std::vector<double> variance_;  ///< centroid: V by place
  std::vector<char> knows_all_;   ///< centroid: every other cluster is in its list
  int learnt_ = 0;
  double last_height_ = 0.0;
  std::vector<double> centroids_;      ///< [2, d]
  std::vector<std::uint32_t> varied_;  ///< centroid: places with V > 0 that do not know all
};

}  // namespace stun_ext::detail
