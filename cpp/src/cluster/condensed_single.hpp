// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "stun_ext/cluster.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

enum class CondensedSingle {
  done,
  beyond,  ///< a distance is NaN or too high in magnitude
  tied,    ///< so many distances tie that they do not fit O(n) memory
};

/// Single linkage of n > 1 observations, by (distance, lower id, higher id). Reads condensed distances once and takes
/// O(n) memory beside them. `merges` are set if done.
CondensedSingle condensed_single(Span<const double> condensed, std::int64_t n, double highest,
                                 std::vector<Merge>& merges);

}  // namespace stun_ext::detail
