// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "distance/distance_panel.hpp"

namespace stun_ext::detail {

/// Distances of some rows with some others. Of two equal rows and those below the diagonal nothing is told.
struct DistanceTile {
  std::int64_t i, i_rows, j, j_rows;  ///< rows i … i + i_rows − 1 with j … j + j_rows − 1
  const double* values;               ///< [i_rows, j_rows]
  std::int64_t stride;

  /// The first column in a row of the tile that counts.
  std::int64_t first(std::int64_t row) const noexcept { return std::max<std::int64_t>(0, i + row + 1 - j); }

  /// Calls function(i, j, distance) for its pairs i < j, row by row.
  template <class Function>
  void for_each(Function&& function) const {
    for (std::int64_t row = 0; row < i_rows; ++row) {
      for (std::int64_t col = first(row); col < j_rows; ++col) function(i + row, j + col, values[row * stride + col]);
    }
  }
};

/// A non-owning reference to a callable void(const DistanceTile&): called from several threads, each pair of rows i < j
/// in one call.
class TileSink {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, TileSink>>>
  TileSink(F& function) noexcept
      : object_(&function), call_([](void* object, const DistanceTile& tile) { (*static_cast<F*>(object))(tile); }) {}

  void operator()(const DistanceTile& tile) const { call_(object_, tile); }

 private:
  void* object_;
  void (*call_)(void*, const DistanceTile&);
};

// What becomes of a tile's sums, [i_rows, j_rows], `stride` apart.

/// sums += block, or sums = block; nothing below the diagonal.
void add_block(const DistanceTile& tile, const double* block, double* sums, bool is_first) noexcept;

/// Replaces x·y by ‖x − y‖², or SquaredDistanceRule::kByDifferences, and counts these.
std::int64_t squares_from_products(const DistanceTile& tile, const std::vector<double>& norms, double* values) noexcept;

/// So many that it is faster to sum the differences of all pairs, packed.
bool are_many(std::int64_t pairs, const DistanceTile& tile) noexcept;

/// Replaces kByDifferences by sums from the rows.
void add_few_differences(const RowSource& source, const DistanceTile& tile, double* squares);

/// Replaces kByDifferences by the given sums.
void add_differences(const DistanceTile& tile, const double* differences, double* squares) noexcept;

/// Makes distances of squared ones, and calls the sink with some rows of the tile at a time.
void hand_on(DistanceTile tile, double* squares, const TileSink& sink);

}  // namespace stun_ext::detail
