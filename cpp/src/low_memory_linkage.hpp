// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "agglomerate.hpp"
#include "stun_ext/cluster.hpp"
#include "ticker.hpp"

namespace stun_ext::detail {

/// How a limit on memory is divided.
struct MemoryPlan {
  std::int64_t block_rows = 0;    ///< rows multiplied at a time; 0: the limit is too low
  std::int64_t super_blocks = 0;  ///< see PassPlan
  std::size_t pairs = 0;          ///< near pairs known at a time
  double sums = 0;                ///< bytes for sums of clusters (Ward and centroid)
  double matrix = 0;              ///< bytes for all distances of the last clusters

  /// @param method  single also stands for the star rule.
  static MemoryPlan of(double limit, std::int64_t n, std::int64_t d, Linkage method, int threads) noexcept;
  /// The lowest limit that there is a plan for.
  static std::int64_t least(std::int64_t n, std::int64_t d, Linkage method, int threads) noexcept;
};

/// linkage_rows without all distances at once: in rounds. Each finds the pairs of clusters that are closer than a
/// limit, chosen so that about as many are as there is room for, in one pass over all pairs of rows (NearPairsPass),
/// and does all merges below that limit (SparseAgglomeration). When the clusters left are few enough, agglomerate()
/// ends it.
/// @param rows  checked.
std::vector<Merge> low_memory_linkage(const ConstMatrixView& rows, Linkage method, const MemoryPlan& plan, Stop stop,
                                      Executor& executor, Ticker& ticker);

}  // namespace stun_ext::detail
