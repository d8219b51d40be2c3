// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "distance/distance_panel.hpp"
#include "distance/distance_tile.hpp"
#include "distance/scratch.hpp"
#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// Sides of tiles by falling size, multiples of the rows that any kernel takes at once. Smaller ones keep more threads
/// busy; larger ones read less. The sums do not depend on them.
constexpr std::int64_t kTiles[] = {192, 96, 48, 24};

/// Some columns of a strip of rows, packed by the thread that needs them first.
class PackedStrip {
 public:
  /// Forgets what it holds, unless that is the same. No other thread may be about.
  void set(const RowSource& source, std::int64_t first, std::int64_t count, std::int64_t col, std::int64_t cols);

  /// With these groups packed: by this thread, and by others that are at it. They begin at a multiple of kUnitRows
  /// rows.
  const DistancePanel& panel(GroupRange groups) noexcept;

 private:
  enum class State : char { empty, claimed, packed };
  static constexpr std::int64_t kUnitRows = kTiles[3];
  std::atomic<State>& state_of(std::int64_t unit) noexcept { return states_[static_cast<std::size_t>(unit)]; }

  LineBuffer memory_;
  DistancePanel panel_;
  const RowSource* source_ = nullptr;
  std::int64_t first_ = -1, col_ = -1;
  std::vector<std::atomic<State>> states_;  ///< of units of rows
};

/// Distances of all pairs of rows, by pairs of strips of them.
class StripPairs {
 public:
  StripPairs(const RowSource& source, Executor& executor);

  /// Bytes that it takes, at most.
  static double bytes(const ConstMatrixView& rows, int threads) noexcept;

  /// Sums the products of all pairs, and writes ‖x‖² of each row, if one strip holds all rows; else returns false.
  bool sum_products(std::vector<double>& norms);

  /// Calls the sink with all distances, once.
  void run(const std::vector<double>& norms, const TileSink& sink);

 private:
  struct Strip {
    std::int64_t first, count;
  };
  struct Tile {
    DistanceTile rows;
    double* squares;         ///< first of all products
    double* sums;            ///< of the term at hand: `squares` or others
    bool needs_differences;  ///< for many of its pairs
  };

  void run(Strip a, Strip b, const std::vector<double>& norms, const TileSink& sink);
  std::vector<Tile> tiles_of(Strip a, Strip b);
  template <class Finish>
  void sum(Term term, Strip a, Strip b, const Finish& finish);
  GroupRange groups_of(std::int64_t first, std::int64_t count) const noexcept;

  const RowSource& source_;
  Executor& executor_;
  const std::int64_t tile_;
  Scratch blocks_;
  PackedStrip packed_a_, packed_b_;
  std::vector<Tile> tiles_;  ///< of the strips at hand
  LineBuffer squares_, differences_;
};

}  // namespace stun_ext::detail
