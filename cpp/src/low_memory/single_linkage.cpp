// SPDX-License-Identifier: Apache-2.0
#include "low_memory/single_linkage.hpp"

#include <algorithm>
#include <numeric>

namespace stun_ext::detail {
namespace {

constexpr std::uint32_t kNone = 0xffffffffu;

/// Clusters by union and find over their places.
class Components {
 public:
  Components(const std::vector<std::uint32_t>& ids, Forest& forest) : id_(ids), parent_(ids.size()), forest_(forest) {
    std::iota(parent_.begin(), parent_.end(), 0u);
  }

  /// A place that stands for the cluster.
  std::uint32_t root(std::uint32_t place) {
    while (parent_[place] != place) place = parent_[place] = parent_[parent_[place]];
    return place;
  }
  std::uint32_t id_of(std::uint32_t place) { return id_[root(place)]; }

  void merge(std::uint32_t place_a, std::uint32_t place_b, double height) {
    const std::uint32_t a = root(place_a), b = root(place_b);
    const auto [low, high] = std::minmax(id_[a], id_[b]);
    const std::uint32_t merged = forest_.merge(low, high, height);
    parent_[a] = b;
    id_[b] = merged;
  }

  std::vector<std::uint32_t> remaining() {
    std::vector<std::uint32_t> ids;
    for (std::uint32_t place = 0; place < parent_.size(); ++place) {
      if (parent_[place] == place) ids.push_back(id_[place]);
    }
    std::sort(ids.begin(), ids.end());
    return ids;
  }

 private:
  std::vector<std::uint32_t> id_;  ///< of a root's cluster
  std::vector<std::uint32_t> parent_;
  Forest& forest_;
};

/// Pairs of equal distance: repeatedly the two neighbours with the lowest (lower id, higher id). What two clusters
/// become has the highest id, so the clusters are taken in the order of their ids, each once: those before it are gone
/// or have no neighbour left. Beside the pairs 8 bytes for each.
class TiedPairs {
 public:
  explicit TiedPairs(std::size_t places) : slot_(places, kNone) {}

  /// @param most  merges at most
  void merge(const NearPair* first, const NearPair* last, std::int64_t most, Components& components) {
    collect(first, last, components);
    next_.assign(root_.size(), kNone);
    parent_.resize(root_.size());
    std::iota(parent_.begin(), parent_.end(), 0u);
    cluster_ = parent_;
    members_.clear();
    for (std::uint32_t node = 0; node < root_.size(); ++node) members_.push_back({node, node});
    for (std::uint32_t low = 0; low < members_.size() && most > 0; ++low) {
      if (members_[low].first == kNone) continue;
      const std::uint32_t high = nearest(low);
      if (high == kNone) continue;
      components.merge(root_[members_[low].first], root_[members_[high].first], first->distance);
      join(low, high);
      --most;
    }
    for (const std::uint32_t root : root_) slot_[root] = kNone;
  }

 private:
  struct Members {
    std::uint32_t first, last;  ///< nodes; kNone: merged away
  };

  /// The clusters that have pairs are the nodes, in the order of their ids.
  void collect(const NearPair* first, const NearPair* last, Components& components) {
    root_.clear();
    for (const NearPair* pair = first; pair != last; ++pair) {
      const std::uint32_t a = components.root(pair->low), b = components.root(pair->high);
      if (a == b) continue;
      for (const std::uint32_t root : {a, b}) {
        if (slot_[root] == kNone) root_.push_back(root);
        slot_[root] = 0;
      }
    }
    std::sort(root_.begin(), root_.end(),
              [&](std::uint32_t a, std::uint32_t b) { return components.id_of(a) < components.id_of(b); });
    for (std::uint32_t node = 0; node < root_.size(); ++node) slot_[root_[node]] = node;
    const auto for_each_pair = [&](auto&& function) {
      for (const NearPair* pair = first; pair != last; ++pair) {
        const std::uint32_t a = components.root(pair->low), b = components.root(pair->high);
        if (a != b) function(slot_[a], slot_[b]);
      }
    };
    start_.assign(root_.size() + 1, 0);
    for_each_pair([&](std::uint32_t a, std::uint32_t b) { ++start_[a], ++start_[b]; });
    std::partial_sum(start_.begin(), start_.end(), start_.begin());
    neighbour_.resize(start_.back());
    for_each_pair([&](std::uint32_t a, std::uint32_t b) {
      neighbour_[--start_[a]] = b;
      neighbour_[--start_[b]] = a;
    });
  }

  /// The neighbour of the lowest id.
  std::uint32_t nearest(std::uint32_t cluster) {
    std::uint32_t lowest = kNone;
    for (std::uint32_t node = members_[cluster].first; node != kNone; node = next_[node]) {
      for (std::size_t k = start_[node]; k < start_[node + 1]; ++k) {
        const std::uint32_t other = cluster_[top(neighbour_[k])];
        if (other != cluster) lowest = std::min(lowest, other);
      }
    }
    return lowest;
  }

  void join(std::uint32_t low, std::uint32_t high) {
    const auto made = static_cast<std::uint32_t>(members_.size());
    const Members joined = {members_[low].first, members_[high].last};
    next_[members_[low].last] = members_[high].first;
    const std::uint32_t from = top(members_[low].first), to = top(members_[high].first);
    parent_[from] = to;
    cluster_[to] = made;
    members_[low] = members_[high] = {kNone, kNone};
    members_.push_back(joined);
  }

  std::uint32_t top(std::uint32_t node) {
    while (parent_[node] != node) node = parent_[node] = parent_[parent_[node]];
    return node;
  }

  std::vector<std::uint32_t> slot_;       ///< by place of a root: its node, or kNone
  std::vector<std::uint32_t> root_;       ///< of a node
  std::vector<std::size_t> start_;        ///< of a node's neighbours, one more at the end
  std::vector<std::uint32_t> neighbour_;  ///< nodes
  std::vector<std::uint32_t> next_;       ///< node of the same cluster
  std::vector<std::uint32_t> parent_;     ///< of a node, by union and find
  std::vector<std::uint32_t> cluster_;    ///< of a node at the top
  std::vector<Members> members_;          ///< of a cluster: first the nodes, then what was made of them
};

}  // namespace

bool merge_single(const std::vector<NearPair>& pairs, std::vector<std::uint32_t>& ids, Stop stop, Forest& forest) {
  Components components(ids, forest);
  TiedPairs tied(ids.size());
  bool is_stopped = false;
  for (std::size_t begin = 0; begin < pairs.size() && !is_stopped;) {
    const double height = pairs[begin].distance;
    if (height > stop.height) {
      is_stopped = true;
      break;
    }
    std::size_t end = begin + 1;
    while (end < pairs.size() && pairs[end].distance == height) ++end;
    const std::int64_t most = forest.num_clusters() - stop.n_clusters;
    if (end == begin + 1) {
      if (components.id_of(pairs[begin].low) != components.id_of(pairs[begin].high)) {
        components.merge(pairs[begin].low, pairs[begin].high, height);
      }
    } else {
      tied.merge(pairs.data() + begin, pairs.data() + end, most, components);
    }
    begin = end;
    is_stopped = forest.num_clusters() <= stop.n_clusters;
  }
  ids = components.remaining();
  return is_stopped;
}

}  // namespace stun_ext::detail
