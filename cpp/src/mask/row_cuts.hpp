// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "mask/scores.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// What goes in a row: the columns whose upper half (kernels/mask.hpp) is below `limit`, and `columns`, whose upper
/// half equals it.
struct RowCut {
  std::int16_t limit;
  Span<const std::uint32_t> columns;
};

/// Finds the lowest scores of rows, exactly, ties from the lowest column up. One object per task: it owns the memory,
/// and looks first where the cut of the row before was, which changes the time alone.
///
/// The `wanted`-th lowest upper half is found by counting how many lie above a limit, again and again; the columns that
/// share it are few (about 0.3% of a row of normal weights), and their lower halves are searched in the same way.
/// Equal scores make them many: the worst time is some 30 counting passes over the row, twice.
class RowCuts {
 public:
  RowCuts(const Scoring& scoring, std::int64_t cols);

  /// Scores a row, which stays where it is. Returns whether it is finite; else it has no cut.
  bool load(const void* row) noexcept;

  /// The `wanted` lowest scores of the row, `wanted` in [0, cols]. Valid until the next call.
  RowCut find(std::int64_t wanted) noexcept;

  /// Upper halves of the row.
  const std::int16_t* uppers() const noexcept { return uppers_.data(); }

 private:
  struct Rank {
    int value;
    std::int64_t below;  ///< how many values are lower
  };
  Rank value_of_rank(const std::int16_t* values, std::int64_t count, std::int64_t padded, std::int64_t wanted, int hint,
                     std::int64_t density) const noexcept;
  std::int64_t keep_lowest(std::int64_t found, std::int64_t wanted) noexcept;

  Scoring scoring_;
  std::int64_t cols_;
  const void* row_ = nullptr;
  int hint_;              ///< the upper half at which the row before was cut
  std::int64_t density_;  ///< about how many columns share an upper half there
  AlignedVector<std::int16_t> uppers_;
  AlignedVector<std::int16_t> lowers_;
  std::vector<std::uint32_t> columns_;
};

}  // namespace stun_ext::detail
