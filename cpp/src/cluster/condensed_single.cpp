// SPDX-License-Identifier: Apache-2.0
#include "cluster/condensed_single.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "cluster/forest.hpp"
#include "dispatch.hpp"
#include "kernels/linkage.hpp"
#include "low_memory/single_linkage.hpp"

namespace stun_ext::detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Observations that distances are compared by, at most: pairs inside a cluster that has none are not filtered.
constexpr std::size_t kReferences = 16;

struct Edge {
  double distance;
  std::int32_t a, b;
};

/// Observations are added one by one, from the last to the first, so that the distances of a new one to the others are
/// a row. It joins a spanning tree of them by the nearest. By the tree it then reaches a reference observation without
/// an edge longer than its own height, and so do the others: an edge between two that is longer than both heights
/// closes a cycle in which all others are shorter, and is not needed. Nearly all are of that kind. The few that remain
/// are kept beside the tree until there are so many that a minimum spanning tree of both (Kruskal) takes the tree's
/// place, and sharpens the heights. Edges that tie with those of the tree stay with it.
class GrowingTree {
 public:
  GrowingTree(Span<const double> condensed, std::int64_t n)
      : kernels_(STUN_EXT_KERNELS(linkage)),
        condensed_(condensed.data()),
        n_(n),
        heights_(static_cast<std::size_t>(n), -kInfinity),
        places_(static_cast<std::size_t>(n)),
        parent_(static_cast<std::size_t>(n)),
        next_(static_cast<std::size_t>(n)),
        joint_(static_cast<std::size_t>(n)),
        clusters_(static_cast<std::size_t>(n)) {
    heights_.reserve(kReferences * heights_.size());
    lighter_.reserve(kReferences);
    edges_.reserve(limit_of(n) + heights_.size());  // a new observation adds less than n
  }

  /// False if a distance is beyond `highest`.
  bool add(std::int64_t i, double highest) {
    const double* row = condensed_ + i * (2 * n_ - i - 1) / 2;
    const std::int64_t count = n_ - i - 1, first = i + 1;
    bool is_within = true;
    const Minimum nearest = kernels_.lowest_within(row, count, highest, is_within);
    if (!is_within) return false;
    const std::int64_t joined = first + nearest.place;
    std::size_t best = 0;
    for (std::size_t r = 1; r < references_; ++r) {
      if (*height(r, joined) < *height(best, joined)) best = r;
    }
    for (std::size_t r = 0; r < references_; ++r) *height(r, i) = std::max(*height(r, joined), nearest.value);
    edges_.push_back({nearest.value, static_cast<std::int32_t>(i), static_cast<std::int32_t>(joined)});
    const std::int64_t found = kernels_.not_above(row, height(best, first), count, *height(best, i), places_.data());
    for (std::int64_t k = 0; k < found; ++k) {
      const auto place = places_[static_cast<std::size_t>(k)];
      if (place == nearest.place) continue;
      edges_.push_back({row[place], static_cast<std::int32_t>(i), static_cast<std::int32_t>(first + place)});
    }
    if (edges_.size() > limit_) reduce(i);
    return true;
  }

  /// More edges tie than a tree has.
  bool is_tied() const noexcept { return is_tied_; }

  /// A minimum spanning tree and all edges that could be in another one, ascending by distance.
  const std::vector<Edge>& edges() {
    reduce(0);
    return edges_;
  }

 private:
  /// A cluster while Kruskal's algorithm runs: its observations as a chain, and the one that is reached by going from
  /// each cluster to the larger of the two it was made of.
  struct Cluster {
    std::int32_t head, tail, size, heart;
  };

  /// Edges of so many observations that are kept before they become a tree: sorting them seldom costs less than
  /// filtering by heights that are out of date.
  static std::size_t limit_of(std::int64_t count) noexcept { return 4 * static_cast<std::size_t>(count) + 256; }

  double* height(std::size_t reference, std::int64_t of) noexcept {
    return heights_.data() + reference * static_cast<std::size_t>(n_) + of;
  }

  /// Makes the edges those of a minimum spanning tree of the observations from `first`, and takes new references.
  void reduce(std::int64_t first) {
    const auto count = static_cast<std::size_t>(n_ - first);
    std::sort(edges_.begin(), edges_.end(), [](const Edge& a, const Edge& b) { return a.distance < b.distance; });
    for (std::size_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::int32_t>(i);
      parent_[i] = place;
      next_[i] = -1;
      clusters_[i] = {place, place, 1, place};
    }
    lighter_.clear();
    std::size_t kept = 0;
    for (std::size_t begin = 0, end; begin < edges_.size(); begin = end) {
      const std::size_t first_kept = kept;
      for (end = begin; end < edges_.size() && edges_[end].distance == edges_[begin].distance; ++end) {
        if (root(edges_[end].a - first) != root(edges_[end].b - first)) edges_[kept++] = edges_[end];
      }
      for (std::size_t k = first_kept; k < kept; ++k) {
        unite(root(edges_[k].a - first), root(edges_[k].b - first), edges_[k].distance, count);
      }
    }
    edges_.resize(kept);
    is_tied_ = kept > 2 * count + 64;
    limit_ = limit_of(n_ - first);
    if (first > 0) refer(clusters_[root(0)], first);
  }

  void unite(std::size_t a, std::size_t b, double distance, std::size_t count) {
    if (a == b) return;
    if (clusters_[a].size < clusters_[b].size) std::swap(a, b);
    Cluster &large = clusters_[a], &small = clusters_[b];
    remember(small, count);
    joint_[static_cast<std::size_t>(large.tail)] = distance;
    next_[static_cast<std::size_t>(large.tail)] = small.head;
    large.tail = small.tail;
    large.size += small.size;
    parent_[b] = static_cast<std::int32_t>(a);
  }

  std::size_t root(std::int64_t of) noexcept {
    auto place = static_cast<std::size_t>(of);
    while (parent_[place] != static_cast<std::int32_t>(place)) {
      place = static_cast<std::size_t>(parent_[place] = parent_[static_cast<std::size_t>(parent_[place])]);
    }
    return place;
  }

  /// The largest of those that were merged into larger ones get a reference of their own, where that spares enough
  /// pairs.
  void remember(const Cluster& small, std::size_t count) {
    const auto size = static_cast<std::size_t>(small.size);
    if (size * size <= 16 * count) return;
    const auto place =
        std::find_if(lighter_.begin(), lighter_.end(), [&](const Cluster& c) { return c.size < small.size; });
    if (lighter_.size() == kReferences - 1) {
      if (place == lighter_.end()) return;
      lighter_.pop_back();
    }
    lighter_.insert(place, small);
  }

  /// Heights by the chain: between two of its places the longest joint counts.
  void refer(const Cluster& all, std::int64_t first) {
    lighter_.insert(lighter_.begin(), all);
    references_ = lighter_.size();
    heights_.resize(std::max(heights_.size(), references_ * static_cast<std::size_t>(n_)));
    std::size_t length = 0;
    for (std::int32_t at = all.head; at >= 0; at = next_[static_cast<std::size_t>(at)]) {
      parent_[static_cast<std::size_t>(at)] = static_cast<std::int32_t>(length);  // where in the chain
      places_[length++] = at;
    }
    for (std::size_t r = 0; r < references_; ++r) {
      double* heights = height(r, first);
      const auto reference = static_cast<std::size_t>(parent_[static_cast<std::size_t>(lighter_[r].heart)]);
      double highest = heights[lighter_[r].heart] = -kInfinity;
      for (std::size_t k = reference + 1; k < length; ++k) {
        highest = std::max(highest, joint_[static_cast<std::size_t>(places_[k - 1])]);
        heights[places_[k]] = highest;
      }
      highest = -kInfinity;
      for (std::size_t k = reference; k > 0; --k) {
        highest = std::max(highest, joint_[static_cast<std::size_t>(places_[k - 1])]);
        heights[places_[k - 1]] = highest;
      }
    }
  }

  const LinkageKernels& kernels_;
  const double* condensed_;
  const std::int64_t n_;
  std::size_t references_ = 1;        ///< at first the last observation
  std::vector<double> heights_;       ///< [reference][observation]
  std::vector<std::int32_t> places_;  ///< what `below` found; the chain
  std::vector<std::int32_t> parent_;  ///< of union and find; then the place in the chain
  std::vector<std::int32_t> next_;    ///< in the chain of a cluster
  std::vector<double> joint_;         ///< height at which the next one is joined to what comes before it
  std::vector<Cluster> clusters_;
  std::vector<Cluster> lighter_;  ///< by size; then those whose hearts are references
  std::vector<Edge> edges_;       ///< a spanning tree, and edges that may replace its own
  std::size_t limit_ = limit_of(0);
  bool is_tied_ = false;
};

}  // namespace

CondensedSingle condensed_single(Span<const double> condensed, std::int64_t n, double highest,
                                 std::vector<Merge>& merges) {
  GrowingTree tree(condensed, n);
  for (std::int64_t i = n - 2; i >= 0; --i) {
    if (!tree.add(i, highest)) return CondensedSingle::beyond;
    if (tree.is_tied()) return CondensedSingle::tied;
  }
  std::vector<NearPair> pairs;
  pairs.reserve(static_cast<std::size_t>(3 * n));
  for (const Edge& edge : tree.edges()) {
    pairs.push_back(
        {edge.distance, static_cast<std::uint32_t>(edge.a) & 0x7fffffffu, 0, static_cast<std::uint32_t>(edge.b)});
  }
  if (tree.is_tied()) return CondensedSingle::tied;
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(n));
  std::iota(ids.begin(), ids.end(), 0u);
  Forest forest(n);
  merge_single(pairs, ids, {}, forest);
  merges = forest.take_merges();
  return CondensedSingle::done;
}

}  // namespace stun_ext::detail
