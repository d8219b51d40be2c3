// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cluster/agglomerate.hpp"
#include "cluster/forest.hpp"
#include "cluster/ticker.hpp"
#include "low_memory/cluster_distance.hpp"
#include "low_memory/pair_store.hpp"
#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// Merges clusters, by any linkage but single, of which only the near pairs are known: all that are closer than
/// `limit`, which every other pair is not. So every merge below the limit is the one that an agglomeration with all
/// distances would do, and in its order.
///
/// A distance that the recurrence would take from an unknown one is bounded instead: unknown distances are at least the
/// limit. A bound that comes to the top is replaced by the distance computed from rows. Pairs that are known belong, as
/// edges of a graph, to their newer cluster, which knows the nearest of its own. Centroid distances can fall below
/// those they come from: of two unknown pairs d² >= limit² − V(z) − V(i), where V is the variance that a cluster has
/// gained in this run, and where that is not enough a cluster learns all its distances.
class SparseAgglomeration {
 public:
  static constexpr double kBytesPerPair = 2.0 * sizeof(std::uint32_t);  ///< beside the pairs themselves

  /// @param pairs  sorted, all below `limit`.
  /// @param ids    the clusters that pairs count, ascending; all clusters of the forest.
  /// @param sums   for Ward and centroid.
  /// @param room   pairs that memory is planned for; centroid linkage uses what is free to learn more.
  SparseAgglomeration(std::vector<NearPair> pairs, double limit, const std::vector<std::uint32_t>& ids,
                      const ConstMatrixView& rows, Linkage method, Forest& forest, CentroidSums* sums, std::size_t room,
                      Executor& executor);

  enum class End {
    stop,   ///< `stop` was reached
    limit,  ///< so was the limit
    early   ///< merges below the limit are left: no more than `enough` clusters are, or a pass is cheaper than going on
  };
  End run(Stop stop, std::int64_t enough, Ticker& ticker);

  /// The clusters that are left, ascending.
  std::vector<std::uint32_t> remaining() const;

 private:
  /// An edge at the time when it was the nearest of its newer cluster.
  struct Entry {
    double distance;
    std::uint32_t low, high, edge;
    bool operator>(const Entry& other) const noexcept {
      if (distance != other.distance) return distance > other.distance;
      return low != other.low ? low > other.low : high > other.high;
    }
  };
  /// A part of a cluster's list of edges: a range of `listed_`, and the part after it.
  struct Segment {
    std::size_t begin;
    std::uint32_t size;
    std::uint32_t next;
  };
  struct List {
    std::uint32_t first, last;  ///< segments
  };
  static constexpr std::uint32_t kNone = 0xffffffffu;
  /// Bounds are made from rounded numbers: held this much (relatively) lower, they stay bounds.
  static constexpr double kLower = 1.0 - 1e-9;
  /// Centroid: clusters that may learn all their distances before a new pass is cheaper.
  static constexpr int kMostLearnt = 64;
  static constexpr std::uint32_t kGone = 0x7fffffffu;  ///< as the `low` of an edge: there is none any more

  static Entry entry_of(const NearPair& edge, std::size_t index) noexcept {
    return {edge.distance, edge.low, edge.high, static_cast<std::uint32_t>(index)};
  }
  static std::uint32_t other_end(const NearPair& edge, std::uint32_t place) noexcept {
    return edge.low == place ? edge.high : edge.low;
  }
  template <class Keep>
  void filter(std::uint32_t place, Keep&& keep);
  void append(List& list, List more) noexcept;
  bool next(Entry& entry);
  bool is_current(const Entry& entry) const noexcept;
  void push(const Entry& entry);
  Entry pop();
  void push_nearest(std::uint32_t place);
  void take_from_top(const Entry& entry);
  void add_lowest_bounds(std::uint32_t place, std::size_t most);
  void resolve(Entry entry);
  void make_exact(NearPair& edge);
  void merge(std::uint32_t low, std::uint32_t high, double height);
  bool take_over(std::uint32_t index, const std::uint32_t* with, std::uint32_t x, std::uint32_t y, std::uint32_t z,
                 double height, bool from_x);
  bool knows_enough(double distance);
  void learn_all(std::uint32_t place);
  void add_bounds(std::uint32_t place, std::size_t first);
  double unknown_bound(std::uint32_t a, std::uint32_t b) const noexcept;

  Linkage method_;
  double limit_;
  Forest& forest_;
  CentroidSums* sums_;
  Executor& executor_;
  double cost_of_pair_;                     ///< of the distance between two rows
  std::vector<ClusterDistance> distances_;  ///< one for each thread
  std::uint32_t first_count_;               ///< places below were there at the start
  std::vector<std::uint32_t> id_;           ///< by place, ascending
  std::vector<double> size_;                ///< by place; 0: merged away
  std::vector<NearPair> edges_;
  std::size_t next_edge_ = 0;          ///< of the edges between first clusters, in order
  std::size_t first_edges_;            ///< how many of them are sorted
  std::vector<std::uint32_t> listed_;  ///< edges, cluster by cluster
  std::vector<Segment> segments_;      ///< the k-th is first cluster k's own
  std::vector<List> list_;             ///< of edges, by place; some may be gone
  std::vector<std::uint32_t> mark_;    ///< by place: edge to x while x and y merge, or kNone
  std::vector<Entry> heap_;
  std::vector<Entry> batch_, tops_;  ///< bounds that are being replaced, and those of them that came to the top
  std::size_t batch_size_ = 1;
  double spent_ = 0.0;  ///< distances between rows that replaced bounds
  std::int64_t active_;
  std::size_t room_;
  std::vector<double> variance_;  ///< centroid: V by place
  std::vector<char> knows_all_;   ///< centroid: every other cluster is in its list
  int learnt_ = 0;
  double last_height_ = 0.0;
  std::vector<std::uint32_t> varied_;  ///< centroid: places with V > 0 that do not know all
};

/// Calls keep(edge) for each edge that a cluster has, and drops the others and those that it returns false for.
template <class Keep>
void SparseAgglomeration::filter(std::uint32_t place, Keep&& keep) {
  List kept = {kNone, kNone};
  for (std::uint32_t at = list_[place].first; at != kNone;) {
    Segment& segment = segments_[at];
    const std::uint32_t after = segment.next;
    std::uint32_t size = 0;
    for (std::uint32_t k = 0; k < segment.size; ++k) {
      const std::uint32_t index = listed_[segment.begin + k];
      if (edges_[index].low != kGone && keep(index)) listed_[segment.begin + size++] = index;
    }
    segment.size = size;
    segment.next = kNone;
    if (size > 0) {
      (kept.first == kNone ? kept.first : segments_[kept.last].next) = at;
      kept.last = at;
    }
    at = after;
  }
  list_[place] = kept;
}

}  // namespace stun_ext::detail
