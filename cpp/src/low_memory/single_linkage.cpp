// SPDX-License-Identifier: Apache-2.0
#include "low_memory/single_linkage.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

namespace stun_ext::detail {
namespace {

/// Clusters by union and find over their places.
class Components {
 public:
  Components(const std::vector<std::uint32_t>& ids, Forest& forest) : id_(ids), parent_(ids.size()), forest_(forest) {
    std::iota(parent_.begin(), parent_.end(), 0u);
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
  std::uint32_t root(std::uint32_t place) {
    while (parent_[place] != place) place = parent_[place] = parent_[parent_[place]];
    return place;
  }

  std::vector<std::uint32_t> id_;  ///< of a root's cluster
  std::vector<std::uint32_t> parent_;
  Forest& forest_;
};

/// Pairs of equal distance: repeatedly the two neighbours with the lowest (lower id, higher id). Ids only grow, and a
/// cluster's neighbours become its successor's.
void merge_tied(std::map<std::pair<std::uint32_t, std::uint32_t>, NearPair> pairs, double height, std::int64_t most,
                Components& components) {
  std::map<std::uint32_t, std::set<std::uint32_t>> neighbours;
  for (const auto& [ids, pair] : pairs) {
    neighbours[ids.first].insert(ids.second);
    neighbours[ids.second].insert(ids.first);
  }
  while (!pairs.empty() && most-- > 0) {
    const auto [low, high] = pairs.begin()->first;
    const NearPair pair = pairs.begin()->second;
    components.merge(pair.low, pair.high, height);
    const std::uint32_t merged = components.id_of(pair.low);
    std::set<std::uint32_t> joint;
    for (const std::uint32_t old : {low, high}) {
      for (const std::uint32_t other : neighbours[old]) {
        const auto found = pairs.find(std::minmax(old, other));
        if (other != low && other != high) {
          joint.insert(other);
          neighbours[other].erase(old);
          neighbours[other].insert(merged);
          pairs.emplace(std::make_pair(other, merged), found->second);
        }
        if (found != pairs.end()) pairs.erase(found);
      }
      neighbours.erase(old);
    }
    neighbours[merged] = std::move(joint);
  }
}

}  // namespace

bool merge_single(const std::vector<NearPair>& pairs, std::vector<std::uint32_t>& ids, Stop stop, Forest& forest) {
  Components components(ids, forest);
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
      std::map<std::pair<std::uint32_t, std::uint32_t>, NearPair> tied;
      for (std::size_t k = begin; k < end; ++k) {
        const std::uint32_t a = components.id_of(pairs[k].low), b = components.id_of(pairs[k].high);
        if (a != b) tied.emplace(std::minmax(a, b), pairs[k]);
      }
      merge_tied(std::move(tied), height, most, components);
    }
    begin = end;
    is_stopped = forest.num_clusters() <= stop.n_clusters;
  }
  ids = components.remaining();
  return is_stopped;
}

}  // namespace stun_ext::detail
