// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <utility>

#include "fuzz.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::fuzz {

/// Follows the merges of a dendrogram and demands of each that it was the next one: its clusters are the closest by the
/// definition of the method on their members, in long double and without a recurrence.
class Follower {
 public:
  /// @param distance  of two observations
  /// @param rows      for Ward and centroid, which are about the clusters' means; null otherwise
  template <class Distance>
  Follower(std::int64_t n, Linkage method, Distance&& distance, const AnyMatrix* rows) : method_(method) {
    for (std::int64_t i = 0; i < n; ++i) {
      Cluster cluster{i, 1.0L, {}, {}};
      for (std::int64_t j = 0; j < i; ++j) cluster.to.push_back(distance(j, i));
      for (std::int64_t c = 0; rows != nullptr && c < rows->view().cols; ++c) cluster.sum.push_back(rows->get(i, c));
      for (const long double value : cluster.to) largest_ = std::max(largest_, std::abs(value));
      clusters_.push_back(std::move(cluster));
    }
  }

  /// Ids, sizes and heights are compared exactly where the method rounds nothing.
  void follow(const std::vector<Merge>& merges) {
    const bool is_exact = method_ == Linkage::single || method_ == Linkage::complete;
    const long double tolerance = is_exact ? 0.0L : (method_ == Linkage::average ? 1e-11L : 1e-6L) * largest_ + 1e-320L;
    double last = -std::numeric_limits<double>::infinity();
    auto next = static_cast<std::int64_t>(clusters_.size());
    for (const Merge& merge : merges) {
      Choice closest{std::numeric_limits<long double>::infinity(), 0, 0}, chosen = closest;
      bool is_found = false;
      for (std::size_t b = 1; b < clusters_.size(); ++b) {
        for (std::size_t a = 0; a < b; ++a) {
          const long double distance = distance_of(a, b);
          const bool is_first = clusters_[a].id < clusters_[closest.a].id ||
                                (a == closest.a && clusters_[b].id < clusters_[closest.b].id);
          if (distance < closest.distance || (distance == closest.distance && is_first)) closest = {distance, a, b};
          if (static_cast<double>(clusters_[a].id) == merge.first &&
              static_cast<double>(clusters_[b].id) == merge.second) {
            chosen = {distance, a, b};
            is_found = true;
          }
        }
      }
      require(is_found, "a merge names two clusters that are there, the lower id first");
      require(std::abs(chosen.distance - merge.height) <= tolerance, "the height is the distance of the clusters");
      require(chosen.distance <= closest.distance + 2 * tolerance, "the closest clusters merge");
      if (is_exact) require(chosen.a == closest.a && chosen.b == closest.b, "of equal pairs the first one merges");
      if (method_ != Linkage::centroid) require(merge.height >= last, "heights do not decrease");
      last = merge.height;
      require(static_cast<long double>(merge.size) == clusters_[chosen.a].size + clusters_[chosen.b].size,
              "the size counts the observations");
      join(chosen.a, chosen.b, next++);
    }
  }

 private:
  struct Cluster {
    std::int64_t id;
    long double size;
    std::vector<long double> to;   ///< least, greatest or summed distance to each cluster before it
    std::vector<long double> sum;  ///< of its rows
  };
  struct Choice {
    long double distance;
    std::size_t a, b;
  };

  long double distance_of(std::size_t a, std::size_t b) const {
    const Cluster &one = clusters_[a], &other = clusters_[b];
    if (method_ == Linkage::average) return other.to[a] / (one.size * other.size);
    if (method_ == Linkage::single || method_ == Linkage::complete) return other.to[a];
    long double squared = 0;
    for (std::size_t c = 0; c < one.sum.size(); ++c) {
      const long double difference = one.sum[c] / one.size - other.sum[c] / other.size;
      squared += difference * difference;
    }
    if (method_ == Linkage::ward) squared *= 2 * one.size * other.size / (one.size + other.size);
    return std::sqrt(squared);
  }

  /// The union goes to the end, where the new id belongs.
  void join(std::size_t a, std::size_t b, std::int64_t id) {
    Cluster joined{id, clusters_[a].size + clusters_[b].size, {}, clusters_[a].sum};
    for (std::size_t c = 0; c < joined.sum.size(); ++c) joined.sum[c] += clusters_[b].sum[c];
    const auto between = [&](std::size_t i, std::size_t j) { return clusters_[std::max(i, j)].to[std::min(i, j)]; };
    for (std::size_t i = 0; i < clusters_.size(); ++i) {
      if (i == a || i == b) continue;
      const long double x = between(i, a), y = between(i, b);
      joined.to.push_back(method_ == Linkage::single     ? std::min(x, y)
                          : method_ == Linkage::complete ? std::max(x, y)
                                                         : x + y);
    }
    for (const std::size_t gone : {b, a}) {  // the higher one first
      clusters_.erase(clusters_.begin() + static_cast<std::ptrdiff_t>(gone));
      for (std::size_t i = gone; i < clusters_.size(); ++i) {
        clusters_[i].to.erase(clusters_[i].to.begin() + static_cast<std::ptrdiff_t>(gone));
      }
    }
    clusters_.push_back(std::move(joined));
  }

  Linkage method_;
  long double largest_ = 0;
  std::vector<Cluster> clusters_;
};

}  // namespace stun_ext::fuzz
