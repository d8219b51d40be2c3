// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "cluster/agglomerate.hpp"
#include "cluster/forest.hpp"
#include "cluster/ticker.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Writes the average distances of all pairs of clusters: those of ClusterDistance, bit for bit, but each distance
/// between rows computed among many others, block by block.
/// @param ids   the clusters, ascending; the places in `out`.
/// @param rows_of_block  of each side of a block: workspaces take 8 bytes times its square for each thread.
void average_distances(const ConstMatrixView& rows, const Forest& forest, const std::vector<std::uint32_t>& ids,
                       std::int64_t rows_of_block, ClusterDistances& out, Executor& executor, Ticker& ticker);

/// Bytes that a thread takes for it at most, what it takes for each row aside.
double average_distances_bytes(std::int64_t n, std::int64_t d, std::int64_t rows_of_block) noexcept;

}  // namespace stun_ext::detail
