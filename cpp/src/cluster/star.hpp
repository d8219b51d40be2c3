// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Shape, dtype and values of a distance matrix for the star rule.
void check_star_distances(const char* operation, const ConstMatrixView& distances);

/// What one run of the star rule gives.
struct StarResult {
  std::int64_t n_clusters;
  std::size_t valid_from;  ///< a run over any number of pairs from here to the one given ends in the same clusters
};

/// The star rule on one matrix (or on the experts of one routing group), for many thresholds.
///
/// The rule depends on a threshold only through the number of pairs below it, so runs are asked for by that number:
/// the pairs are sorted once, and each is known by its rank.
class StarProblem {
 public:
  /// @param distances  checked; the upper triangle is read. Experts [first, first + size) take part.
  /// @param below      pairs at this distance or above are left out: no run may use a higher threshold.
  StarProblem(const ConstMatrixView& distances, std::int64_t first, std::int64_t size,
              double below = std::numeric_limits<double>::infinity());

  std::int64_t num_experts() const noexcept { return size_; }

  /// Distances of the pairs in ascending order, +Inf left out.
  const std::vector<double>& sorted() const noexcept { return sorted_; }

  /// Pairs below a threshold.
  std::size_t pairs_below(double threshold) const noexcept;

  /// The rule over the first `pairs` pairs; `pairs` must not split equal distances. Labels count from 0 in the group.
  StarResult run(std::size_t pairs, std::int64_t min_clusters);
  const std::vector<std::int64_t>& labels() const noexcept { return labels_; }

  /// Ranks at which the components of the graph of the closest pairs become fewer. The rule never merges experts
  /// that these pairs do not connect, so over p pairs it leaves at least num_experts() − #{ranks < p} clusters.
  std::vector<std::size_t> component_ranks() const;

 private:
  struct Pair {
    std::uint32_t i;
    std::uint32_t j;
  };
  std::uint32_t& rank(std::size_t i, std::size_t j) noexcept { return rank_[i * static_cast<std::size_t>(size_) + j]; }

  /// The highest rank between `expert` and the members, or the first that is not below `pairs`.
  std::uint32_t highest_rank(std::size_t expert, const std::vector<std::uint32_t>& members, std::size_t pairs) noexcept;

  std::int64_t size_;
  std::vector<Pair> pairs_;
  std::vector<double> sorted_;
  std::vector<std::uint32_t> rank_;  ///< [size, size]: place of a pair in sorted order; kNever for pairs left out
  std::vector<std::int64_t> labels_;
  std::vector<std::vector<std::uint32_t>> members_;  ///< of the cluster that a label names
  std::vector<std::uint32_t> blocked_;               ///< ranks blocked in this run, to be restored after it
};

}  // namespace stun_ext::detail
