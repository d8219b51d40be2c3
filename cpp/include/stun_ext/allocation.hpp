// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// What one threshold over all layers gives.
struct Allocation {
  double threshold;                  ///< star-rule threshold (strict <) used in every layer
  std::vector<std::int64_t> counts;  ///< experts kept, per layer
  std::int64_t requested_total;
  std::int64_t reached_total;  ///< sum of counts
};

/// One star-rule threshold for all layers whose kept experts sum to `total`, or to the nearest reachable total.
///
/// The candidates are all the pair distances, and +Inf: between them nothing changes. The result is the candidate with
/// the nearest total; of equally near totals the larger, of equal totals the lower threshold. It is found exactly and
/// always (the released STUN code bisects a step of 0.1, may end elsewhere, and may not end): the total is not monotone
/// in the threshold, but it is never below the number of components of the graph of the pairs under it, so the search
/// starts where these allow the total and goes up, re-clustering a layer only where its clusters can change.
///
/// @param distances    one [E_l, E_l] matrix per layer, as star_clusters takes them.
/// @param total        experts to keep over all layers, in [sum of minima, sum of E_l].
/// @param min_experts  per-layer minimum, in [1, E_l]: the star rule's min_clusters.
/// @param n_group      routing groups of equal, contiguous experts (1: none). With groups, experts of different groups
///                     never merge, and a layer's count is n_group · max over groups of its clusters in the group, so
///                     that survivors can be equal per group; min_experts must then be a multiple of n_group.
/// @throws std::invalid_argument on any of these, before any clustering.
Allocation allocate_experts(Span<const ConstMatrixView> distances, std::int64_t total, std::int64_t min_experts,
                            std::int64_t n_group = 1, Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
