// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cluster/agglomerate.hpp"
#include "cluster/forest.hpp"
#include "low_memory/near_pairs.hpp"

namespace stun_ext::detail {

/// Single linkage of clusters of which all pairs closer than some limit are known: Kruskal's algorithm. Where distances
/// tie, pairs go by (lower id, higher id) of the clusters at that time. Returns whether `stop` was reached.
/// @param pairs  sorted.
/// @param ids    the clusters that pairs count, ascending; those that are left afterwards.
bool merge_single(const std::vector<NearPair>& pairs, std::vector<std::uint32_t>& ids, Stop stop, Forest& forest);

}  // namespace stun_ext::detail
