// SPDX-License-Identifier: Apache-2.0
#include "distance/strip_pairs.hpp"

#include <algorithm>
#include <thread>

#include "distance/distance.hpp"

namespace stun_ext::detail {
namespace {

using Rule = SquaredDistanceRule;

constexpr double kWorthThreads = 1 << 20;  // products

// What is packed at a time is bounded, whatever the numbers of rows, columns and threads: a strip of rows with itself
// or another one, some columns after the others.
constexpr std::int64_t kStripRows = 1152;  // a multiple of all tiles
constexpr std::int64_t kPanelValues = std::int64_t{1} << 21;

std::int64_t up_to(std::int64_t value, std::int64_t multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t tile_rows(std::int64_t n, std::int64_t cols, int threads) noexcept {
  const std::int64_t rows_of_strip = std::min(n, kStripRows);
  if (static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(cols) < kWorthThreads) threads = 1;
  for (const std::int64_t rows : kTiles) {
    const std::int64_t tiles = (rows_of_strip + rows - 1) / rows;
    if (threads == 1 || tiles * (tiles + 1) / 2 >= 3 * threads) return std::min(rows, up_to(rows_of_strip, kTiles[3]));
  }
  return kTiles[3];
}

std::int64_t strip_rows(std::int64_t n, std::int64_t tile) noexcept {
  const std::int64_t strips = (n + kStripRows - 1) / kStripRows;
  return up_to((n + strips - 1) / strips, tile);
}

std::int64_t cols_of_panel(std::int64_t rows) noexcept {
  return std::max<std::int64_t>(1, kPanelValues / rows / kBlockCols) * kBlockCols;
}

}  // namespace

void PackedStrip::set(const RowSource& source, std::int64_t first, std::int64_t count, std::int64_t col,
                      std::int64_t cols) {
  if (first == first_ && col == col_) return;
  memory_.reserve(DistancePanel::size(source.all_kernels(), count, cols));
  panel_ = DistancePanel(source, count, col, cols, memory_.data());
  source_ = &source;
  first_ = first;
  col_ = col;
  states_ = std::vector<std::atomic<State>>(static_cast<std::size_t>((count + kUnitRows - 1) / kUnitRows));
}

// A unit that somebody else has claimed is waited for: it is being packed right now, whatever executor this is.
const DistancePanel& PackedStrip::panel(GroupRange groups) noexcept {
  const std::int64_t per_unit = kUnitRows / source_->all_kernels().group;
  const std::int64_t begin = groups.begin / per_unit, end = (groups.end + per_unit - 1) / per_unit;
  for (std::int64_t unit = begin; unit < end; ++unit) {
    State state = State::empty;
    if (!state_of(unit).compare_exchange_strong(state, State::claimed)) continue;
    const std::int64_t last = std::min((unit + 1) * per_unit, panel_.groups().end);
    for (std::int64_t group = unit * per_unit; group < last; ++group) panel_.pack(*source_, first_, nullptr, group);
    state_of(unit).store(State::packed, std::memory_order_release);
  }
  for (std::int64_t unit = begin; unit < end; ++unit) {
    while (state_of(unit).load(std::memory_order_acquire) != State::packed) std::this_thread::yield();
  }
  return panel_;
}

StripPairs::StripPairs(const RowSource& source, Executor& executor)
    : source_(source),
      executor_(executor),
      tile_(tile_rows(source.rows().rows, source.rows().cols, executor.concurrency())),
      blocks_(executor.concurrency(), tile_ * tile_) {}

double StripPairs::bytes(const ConstMatrixView& rows, int threads) noexcept {
  const std::int64_t tile = tile_rows(rows.rows, rows.cols, threads), strip = strip_rows(rows.rows, tile);
  const bool is_one = strip >= rows.rows;
  const std::int64_t side = (strip + tile - 1) / tile, tiles = is_one ? side * (side + 1) / 2 : side * side;
  std::int64_t panel = DistancePanel::size(distance_kernels(), strip, std::min(rows.cols, cols_of_panel(strip)));
  if (rows.cols > cols_of_panel(strip)) panel = std::max(panel, kPanelValues + kPanelValues / 8);  // of the last strip
  const std::int64_t pairs = tile * tile / 3;  // of a tile, by differences one by one: in a list that grows
  const std::int64_t values = tile * tile * (2 * tiles + threads) + panel * (is_one ? 1 : 2) + 8 * pairs * threads;
  return 8.0 * static_cast<double>(values) + static_cast<double>(sizeof(Tile)) * 3.0 * static_cast<double>(tiles) +
         static_cast<double>(strip);  // states of packed units, generously
}

bool StripPairs::sum_products(std::vector<double>& norms) {
  const std::int64_t n = source_.rows().rows;
  if (n > kStripRows || source_.rows().cols < Rule::kProductCols) return false;
  const Strip all{0, n};
  tiles_ = tiles_of(all, all);
  sum(Term::product, all, all, [](Tile&) {});
  for (const Tile& tile : tiles_) {
    for (std::int64_t row = 0; tile.rows.i == tile.rows.j && row < tile.rows.i_rows; ++row) {
      norms[static_cast<std::size_t>(tile.rows.i + row)] = tile.squares[row * (tile_ + 1)];
    }
  }
  return true;
}

void StripPairs::run(const std::vector<double>& norms, const TileSink& sink) {
  const std::int64_t n = source_.rows().rows;
  const std::int64_t strip = strip_rows(n, tile_);
  for (std::int64_t i = 0; i < n; i += strip) {
    for (std::int64_t j = i; j < n; j += strip) {
      run({i, std::min(strip, n - i)}, {j, std::min(strip, n - j)}, norms, sink);
    }
  }
}

void StripPairs::run(Strip a, Strip b, const std::vector<double>& norms, const TileSink& sink) {
  const auto finish_products = [&](Tile& tile) {
    const std::int64_t pairs = squares_from_products(tile.rows, norms, tile.squares);
    tile.needs_differences = are_many(pairs, tile.rows);
    if (tile.needs_differences) return;
    if (pairs > 0) add_few_differences(source_, tile.rows, tile.squares);
    hand_on(tile.rows, tile.squares, sink);
  };
  if (!tiles_.empty()) {  // the only strip, of which sum_products() has done this much
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) finish_products(tiles_[static_cast<std::size_t>(k)]);
    };
    executor_.parallel_for(static_cast<std::int64_t>(tiles_.size()), 1, task);
  } else {
    tiles_ = tiles_of(a, b);
    if (source_.rows().cols >= Rule::kProductCols) {
      sum(Term::product, a, b, finish_products);
    } else {
      for (Tile& tile : tiles_) {
        std::fill_n(tile.squares, tile_ * tile_, Rule::kByDifferences);
        tile.needs_differences = true;
      }
    }
  }
  tiles_.erase(std::remove_if(tiles_.begin(), tiles_.end(), [](const Tile& tile) { return !tile.needs_differences; }),
               tiles_.end());
  differences_.reserve(tile_ * tile_ * static_cast<std::int64_t>(tiles_.size()));
  for (std::size_t k = 0; k < tiles_.size(); ++k) {
    tiles_[k].sums = differences_.data() + static_cast<std::int64_t>(k) * tile_ * tile_;
  }
  sum(Term::difference, a, b, [&](Tile& tile) {
    add_differences(tile.rows, tile.sums, tile.squares);
    hand_on(tile.rows, tile.squares, sink);
  });
  tiles_.clear();
}

std::vector<StripPairs::Tile> StripPairs::tiles_of(Strip a, Strip b) {
  std::vector<Tile> tiles;
  const auto add = [&](std::int64_t i, std::int64_t j) {
    const std::int64_t i_rows = std::min(tile_, a.first + a.count - i);
    const std::int64_t j_rows = std::min(tile_, b.first + b.count - j);
    tiles.push_back({{i, i_rows, j, j_rows, nullptr, tile_}, nullptr, nullptr, false});
  };
  const bool is_diagonal = a.first == b.first;
  for (std::int64_t i = a.first; i < a.first + a.count; i += tile_) {
    for (std::int64_t j = is_diagonal ? i + tile_ : b.first; j < b.first + b.count; j += tile_) add(i, j);
  }
  // Those on the diagonal are half as much work: last, so that the threads end together.
  for (std::int64_t i = a.first; is_diagonal && i < a.first + a.count; i += tile_) add(i, i);
  const std::int64_t values = tile_ * tile_;
  squares_.reserve(values * static_cast<std::int64_t>(tiles.size()));
  for (std::size_t k = 0; k < tiles.size(); ++k) {
    tiles[k].squares = tiles[k].sums = squares_.data() + static_cast<std::int64_t>(k) * values;
  }
  return tiles;
}

// Sums over the columns, some after the others, and calls finish(tile) with what is done with then.
template <class Finish>
void StripPairs::sum(Term term, Strip a, Strip b, const Finish& finish) {
  if (tiles_.empty()) return;
  const std::int64_t all = source_.rows().cols;
  const std::int64_t step = cols_of_panel(a.count);
  for (std::int64_t col = 0; col < all; col += step) {
    const std::int64_t cols = std::min(step, all - col);
    packed_a_.set(source_, a.first, a.count, col, cols);
    PackedStrip& packed_b = b.first == a.first ? packed_a_ : packed_b_;
    packed_b.set(source_, b.first, b.count, col, cols);
    auto task = [&](std::int64_t begin, std::int64_t end) {
      const Scratch::Lease block(blocks_);
      for (std::int64_t index = begin; index < end; ++index) {
        Tile& tile = tiles_[static_cast<std::size_t>(index)];
        const GroupRange groups_a = groups_of(tile.rows.i - a.first, tile.rows.i_rows);
        const GroupRange groups_b = groups_of(tile.rows.j - b.first, tile.rows.j_rows);
        const DistancePanel& panel_a = packed_a_.panel(groups_a);
        const DistancePanel& panel_b = packed_b.panel(groups_b);
        for (std::int64_t k = 0; k < panel_a.blocks(); ++k) {
          DistancePanel::sum_block(term, k, panel_a, groups_a, panel_b, groups_b, tile.rows.i == tile.rows.j,
                                   block.data(), tile_);
          add_block(tile.rows, block.data(), tile.sums, col == 0 && k == 0);
        }
        if (col + cols == all) finish(tile);
      }
    };
    executor_.parallel_for(static_cast<std::int64_t>(tiles_.size()), 1, task);
  }
}

GroupRange StripPairs::groups_of(std::int64_t first, std::int64_t count) const noexcept {
  const std::int64_t size = source_.all_kernels().group;
  return {first / size, (first + count + size - 1) / size};
}

}  // namespace stun_ext::detail
