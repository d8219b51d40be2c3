// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace {

constexpr const char* kOperation = "cut_tree";

/// A node of the tree: an observation, or the cluster that merge i made, numbered n + i.
struct Children {
  std::size_t first;
  std::size_t second;
};

std::size_t node_of(double id, const char* name, std::size_t merge, std::size_t nodes) {
  // Written so that NaN fails.
  if (!(id >= 0.0 && id < static_cast<double>(nodes)) || id != std::floor(id)) {
    detail::fail(kOperation, name, " cluster of merge ", merge, " must be an integer in [0, ", nodes - 1, "], got ",
                 id);
  }
  return static_cast<std::size_t>(id);
}

std::vector<Children> check_dendrogram(Span<const Merge> merges, Span<std::int64_t> labels) {
  const std::size_t n = labels.size();
  if (n < merges.size() + 1) {
    detail::fail(kOperation, "labels must hold one value for each of the observations, at least ", merges.size() + 1,
                 " for ", merges.size(), " merges, got ", n);
  }
  std::vector<Children> children(merges.size());
  std::vector<double> size(n + merges.size(), 1.0);
  std::vector<char> is_used(n + merges.size(), 0);
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const Merge& merge = merges[i];
    const Children pair = {node_of(merge.first, "first", i, n + i), node_of(merge.second, "second", i, n + i)};
    for (const std::size_t node : {pair.first, pair.second}) {
      if (is_used[node])
        detail::fail(kOperation, "a cluster must be merged once, got cluster ", node, " again in merge ", i);
      is_used[node] = 1;
    }
    if (std::isnan(merge.height)) detail::fail(kOperation, "heights must not be NaN, got one in merge ", i);
    size[n + i] = size[pair.first] + size[pair.second];
    if (merge.size != size[n + i]) {
      detail::fail(kOperation, "merge ", i, " must count ", size[n + i], " observations, got ", merge.size);
    }
    children[i] = pair;
  }
  return children;
}

/// Labels after the merges with is_applied; a merge that is applied has every merge below it applied.
void label(const std::vector<Children>& children, const std::vector<char>& is_applied, Span<std::int64_t> labels) {
  const std::size_t n = labels.size();
  std::vector<std::int64_t> lowest(n + children.size());
  for (std::size_t node = 0; node < n; ++node) lowest[node] = static_cast<std::int64_t>(node);
  for (std::size_t i = 0; i < children.size(); ++i) {
    lowest[n + i] = std::min(lowest[children[i].first], lowest[children[i].second]);
  }
  for (std::size_t i = children.size(); i-- > 0;) {
    if (is_applied[i]) lowest[children[i].first] = lowest[children[i].second] = lowest[n + i];
  }
  std::copy(lowest.begin(), lowest.begin() + static_cast<std::ptrdiff_t>(n), labels.begin());
}

}  // namespace

void cut_tree_count(Span<const Merge> merges, std::int64_t n_clusters, Span<std::int64_t> labels) {
  const std::vector<Children> children = check_dendrogram(merges, labels);
  const auto n = static_cast<std::int64_t>(labels.size());
  if (n_clusters < 1 || n_clusters > n) {
    detail::fail(kOperation, "n_clusters must be in [1, ", n, "], got ", n_clusters);
  }
  if (n - n_clusters > static_cast<std::int64_t>(children.size())) {
    detail::fail(kOperation, "n_clusters must be at least ", n - static_cast<std::int64_t>(children.size()), " with ",
                 children.size(), " merges of ", n, " observations, got ", n_clusters);
  }
  std::vector<char> is_applied(children.size(), 0);
  std::fill(is_applied.begin(), is_applied.begin() + (n - n_clusters), char{1});
  label(children, is_applied, labels);
}

void cut_tree_height(Span<const Merge> merges, double height, Span<std::int64_t> labels) {
  const std::vector<Children> children = check_dendrogram(merges, labels);
  if (std::isnan(height)) detail::fail(kOperation, "height must not be NaN");
  const std::size_t n = labels.size();
  std::vector<char> is_applied(children.size(), 0);
  auto is_whole = [&](std::size_t node) { return node < n || is_applied[node - n] != 0; };
  for (std::size_t i = 0; i < children.size(); ++i) {
    is_applied[i] = merges[i].height <= height && is_whole(children[i].first) && is_whole(children[i].second);
  }
  label(children, is_applied, labels);
}

}  // namespace stun_ext
