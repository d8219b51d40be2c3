// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cluster/agglomerate.hpp"
#include "cluster/ticker.hpp"
#include "distance/gram.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::detail {

/// How a limit on memory is divided.
struct MemoryPlan {
  std::int64_t block_rows = 0;    ///< rows multiplied at a time
  std::int64_t super_blocks = 0;  ///< see PassPlan
  std::size_t pairs = 0;          ///< near pairs known at a time
  double sums = 0;                ///< bytes for sums of clusters (Ward and centroid)
  double matrix = 0;              ///< bytes for all distances of the last clusters; Ward and centroid: none

  /// @param asked   the caller's limit, in bytes; 0: none.
  /// @param usual   the limit then.
  /// @param method  single also stands for the star rule.
  /// @throws std::invalid_argument on more than 2^30 rows, and if the limit is too low (naming the lowest).
  static MemoryPlan of(const char* operation, std::int64_t asked, double usual, const ConstMatrixView& rows,
                       Linkage method, int threads);
};

/// Refuses a limit below zero.
void check_memory_limit(const char* operation, std::int64_t memory_limit);

/// The frame of rows for a pass; refuses rows so far apart that squared distances leave float64 (1e150).
GramFrame frame_of(const char* operation, const ConstMatrixView& rows, Executor& executor);

/// linkage_rows without all distances at once: in rounds. Each finds the pairs of clusters that are closer than a
/// limit, chosen so that about as many are as there is room for, in one pass over all pairs of rows (NearPairsPass),
/// and does all merges below that limit (SparseAgglomeration). When the distances of the clusters left fit,
/// agglomerate() ends it; Ward's and centroid linkage go on until all pairs are near ones.
/// @param rows  checked.
std::vector<Merge> low_memory_linkage(const ConstMatrixView& rows, Linkage method, const MemoryPlan& plan, Stop stop,
                                      Executor& executor, Ticker& ticker);

}  // namespace stun_ext::detail
