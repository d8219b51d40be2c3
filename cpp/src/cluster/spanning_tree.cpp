// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cluster/agglomerate.hpp"
#include "dispatch.hpp"
#include "kernels/linkage.hpp"

namespace stun_ext::detail {
namespace {

/// The step of Prim's algorithm at which a cluster joined the tree, at least 1, and its distance to the tree.
struct Join {
  double distance;
  std::size_t step;
};

/// Order in which Prim's algorithm takes the clusters, and their joins.
void span(ClusterDistances& distances, std::vector<std::size_t>& order, std::vector<Join>& joins) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const LinkageKernels& kernels = STUN_EXT_KERNELS(linkage);
  const std::int64_t n = distances.clusters();
  std::vector<double> near(static_cast<std::size_t>(n), kInfinity), penalty(static_cast<std::size_t>(n), 0.0);
  std::int64_t last = 0;
  for (std::size_t step = 1;; ++step) {
    order.push_back(static_cast<std::size_t>(last));
    penalty[order.back()] = kInfinity;
    if (step == static_cast<std::size_t>(n)) return;
    const Minimum next = kernels.approach(distances.row(last), penalty.data(), n, near.data());
    joins.push_back({next.value, step});
    last = next.place;
  }
}

}  // namespace

// The clusters below any height follow each other in the order of the tree: a cluster joins the one before it at the
// height of its join, as in SciPy. With distinct heights the merges are those of the greedy order.
bool merge_by_spanning_tree(ClusterDistances& distances, const Clusters& clusters, Stop stop,
                            std::vector<Merge>& merges) {
  const std::size_t n = clusters.id.size();
  std::vector<std::size_t> order;
  std::vector<Join> joins;
  order.reserve(n);
  joins.reserve(n);
  span(distances, order, joins);
  std::sort(joins.begin(), joins.end(), [](const Join& a, const Join& b) { return a.distance < b.distance; });
  const auto is_tied = [](const Join& a, const Join& b) { return a.distance == b.distance; };
  if (std::adjacent_find(joins.begin(), joins.end(), is_tied) != joins.end()) return false;

  std::vector<std::size_t> parent(n);  // union and find
  std::iota(parent.begin(), parent.end(), std::size_t{0});
  const auto root = [&](std::size_t place) {
    while (parent[place] != place) place = parent[place] = parent[parent[place]];
    return place;
  };
  std::vector<std::int64_t> id = clusters.id;
  std::vector<double> size = clusters.size;
  auto left = static_cast<std::int64_t>(n);
  for (const Join& join : joins) {
    if (left <= stop.n_clusters || join.distance > stop.height) break;
    const std::size_t a = root(order[join.step - 1]), b = root(order[join.step]);
    const auto [low, high] = std::minmax(id[a], id[b]);
    size[b] += size[a];
    parent[a] = b;
    merges.push_back({static_cast<double>(low), static_cast<double>(high), join.distance, size[b]});
    id[b] = clusters.next_id + static_cast<std::int64_t>(n) - left--;
  }
  return true;
}

}  // namespace stun_ext::detail
