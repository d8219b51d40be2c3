// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "row.cuh"
#include "wanda.cuh"

namespace stun_ext::cuda::detail {

/// Calls use(item) for each.
template <class Use>
__device__ void for_each_item(std::uint32_t items, Use&& use) {
  while (items != 0) {
    use(__ffs(static_cast<int>(items)) - 1);
    items &= items - 1;
  }
}

/// Of the items of all threads those with the `wanted` lowest columns.
template <class RowType>
__device__ std::uint32_t lowest_columns(std::uint32_t items, int wanted, BlockSum& block) {
  constexpr int kChunkWords = RowType::kChunkWords;
  std::uint32_t chosen = 0;
  for (int j = 0; j < RowType::kChunks; ++j) {  // columns ascend by chunk, then by thread
    const std::uint32_t chunk = items >> (j * kChunkWords) & ((1u << kChunkWords) - 1) * 0x10001u;
    const auto own = static_cast<std::uint32_t>(__popc(chunk));
    const int total = static_cast<int>(block.sum(own));
    if (total <= wanted) {
      chosen |= chunk << (j * kChunkWords);
      wanted -= total;
      continue;
    }
    int left = wanted - static_cast<int>(block.sum_before(own));
    for (int i = 0; i < 2 * kChunkWords; ++i) {
      const std::uint32_t item = 1u << (i / 2 + i % 2 * 16);
      if ((chunk & item) != 0 && left-- > 0) chosen |= item << (j * kChunkWords);
    }
    break;
  }
  return chosen;
}

/// Which of the items go whose uppers equal the cut's: the `ties` lowest by (lower half of the key, column). For rows
/// with many of them, such as zeros.
template <class RowType>
__device__ std::uint32_t search_ties(const RowType& row, std::uint32_t equal, int ties, BlockSum& block) {
  std::uint32_t highest = 0, inverse_lowest = 0;
  for_each_item(equal, [&](int item) {
    const std::uint32_t lower = row.lower(row.column_of_item(item));
    highest = max(highest, lower);
    inverse_lowest = max(inverse_lowest, 0xffffu - lower);
  });
  int high = static_cast<int>(block.max(highest));
  int low = 0xffff - static_cast<int>(block.max(inverse_lowest)) - 1;
  if (high - low == 1) return lowest_columns<RowType>(equal, ties, block);
  int at_low = 0;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    std::uint32_t found = 0;
    for_each_item(equal, [&](int item) { found += static_cast<int>(row.lower(row.column_of_item(item))) <= middle; });
    found = block.sum(found);
    if (static_cast<int>(found) < ties) {
      low = middle, at_low = static_cast<int>(found);
    } else {
      high = middle;
    }
  }
  std::uint32_t below = 0, tied = 0;
  for_each_item(equal, [&](int item) {
    const int lower = static_cast<int>(row.lower(row.column_of_item(item)));
    below |= lower < high ? 1u << item : 0u;
    tied |= lower == high ? 1u << item : 0u;
  });
  return below | lowest_columns<RowType>(tied, ties - at_low, block);
}

}  // namespace stun_ext::cuda::detail
