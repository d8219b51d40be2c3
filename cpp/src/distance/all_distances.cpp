// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "check.hpp"
#include "distance/distance.hpp"
#include "distance/distance_tile.hpp"

namespace stun_ext::detail {
namespace {

using Rule = SquaredDistanceRule;

// Tiles by falling size, multiples of the rows that any kernel takes at once. Smaller ones keep more threads busy;
// larger ones read less. The sums do not depend on them.
constexpr std::int64_t kTiles[] = {192, 96, 48, 24};
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

/// A strip of rows, packed. Packs only what it does not hold.
class PackedStrip {
 public:
  void pack(const RowSource& source, std::int64_t first, std::int64_t count, std::int64_t col, std::int64_t cols,
            Executor& executor) {
    if (first == first_ && col == col_) return;
    memory_.reserve(DistancePanel::size(source.all_kernels(), count, cols));
    panel_ = DistancePanel(source, count, col, cols, memory_.data());
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t group = begin; group < end; ++group) panel_.pack(source, first, nullptr, group);
    };
    const std::int64_t per_task = rows_per_task(cols) / source.all_kernels().group;
    executor.parallel_for(panel_.groups().end, std::max<std::int64_t>(per_task, 1), task);
    first_ = first;
    col_ = col;
  }
  const DistancePanel& panel() const noexcept { return panel_; }

 private:
  LineBuffer memory_;
  DistancePanel panel_;
  std::int64_t first_ = -1, col_ = -1;
};

/// All pairs of rows by pairs of strips, one after the other.
class StripPairs {
 public:
  StripPairs(const RowSource& source, const std::vector<double>& norms, const TileSink& sink, Executor& executor)
      : source_(source),
        norms_(norms),
        sink_(sink),
        executor_(executor),
        tile_(tile_rows(source.rows().rows, source.rows().cols, executor.concurrency())) {}

  static double bytes(const ConstMatrixView& rows, int threads) noexcept {
    const std::int64_t tile = tile_rows(rows.rows, rows.cols, threads), strip = strip_rows(rows.rows, tile);
    const bool is_one = strip >= rows.rows;
    const std::int64_t side = (strip + tile - 1) / tile, tiles = is_one ? side * (side + 1) / 2 : side * side;
    std::int64_t panel = DistancePanel::size(distance_kernels(), strip, std::min(rows.cols, cols_of_panel(strip)));
    if (rows.cols > cols_of_panel(strip))
      panel = std::max(panel, kPanelValues + kPanelValues / 8);  // of the last strip
    const std::int64_t pairs = tile * tile / 3;  // of a tile, by differences one by one: in a list that grows
    return 8.0 * static_cast<double>(3 * tile * tile * tiles + panel * (is_one ? 1 : 2) + 8 * pairs * threads) +
           static_cast<double>(sizeof(Tile)) * 3.0 * static_cast<double>(tiles);
  }

  void run() {
    const std::int64_t n = source_.rows().rows;
    const std::int64_t strip = strip_rows(n, tile_);
    for (std::int64_t i = 0; i < n; i += strip) {
      for (std::int64_t j = i; j < n; j += strip) run({i, std::min(strip, n - i)}, {j, std::min(strip, n - j)});
    }
  }

 private:
  struct Strip {
    std::int64_t first, count;
  };
  struct Tile {
    DistanceTile rows;
    double* squares;         ///< first of all products
    double* sums;            ///< of the term at hand: `squares` or others
    double* block;           ///< one block of them
    bool needs_differences;  ///< for many of its pairs
  };

  static std::int64_t strip_rows(std::int64_t n, std::int64_t tile) noexcept {
    const std::int64_t strips = (n + kStripRows - 1) / kStripRows;
    return up_to((n + strips - 1) / strips, tile);
  }
  static std::int64_t cols_of_panel(std::int64_t rows) noexcept {
    return std::max<std::int64_t>(1, kPanelValues / rows / kBlockCols) * kBlockCols;
  }

  void run(Strip a, Strip b) {
    std::vector<Tile> tiles = tiles_of(a, b);
    const std::int64_t values = tile_ * tile_;
    const auto count = static_cast<std::int64_t>(tiles.size());
    memory_.reserve(2 * values * count);
    for (std::int64_t k = 0; k < count; ++k) {
      Tile& tile = tiles[static_cast<std::size_t>(k)];
      tile.squares = tile.sums = memory_.data() + 2 * k * values;
      tile.block = tile.squares + values;
    }
    if (source_.rows().cols >= Rule::kProductCols) {
      sum(Term::product, a, b, tiles);
    } else {
      for (Tile& tile : tiles) {
        std::fill_n(tile.squares, values, Rule::kByDifferences);
        tile.needs_differences = true;
      }
    }
    tiles.erase(std::remove_if(tiles.begin(), tiles.end(), [](const Tile& tile) { return !tile.needs_differences; }),
                tiles.end());
    if (tiles.empty()) return;
    differences_.reserve(values * static_cast<std::int64_t>(tiles.size()));
    for (std::size_t k = 0; k < tiles.size(); ++k) {
      tiles[k].sums = differences_.data() + static_cast<std::int64_t>(k) * values;
    }
    sum(Term::difference, a, b, tiles);
  }

  std::vector<Tile> tiles_of(Strip a, Strip b) const {
    std::vector<Tile> tiles;
    const auto add = [&](std::int64_t i, std::int64_t j) {
      const std::int64_t i_rows = std::min(tile_, a.first + a.count - i);
      const std::int64_t j_rows = std::min(tile_, b.first + b.count - j);
      tiles.push_back({{i, i_rows, j, j_rows, nullptr, tile_}, nullptr, nullptr, nullptr, false});
    };
    const bool is_diagonal = a.first == b.first;
    for (std::int64_t i = a.first; i < a.first + a.count; i += tile_) {
      for (std::int64_t j = is_diagonal ? i + tile_ : b.first; j < b.first + b.count; j += tile_) add(i, j);
    }
    // Those on the diagonal are half as much work: last, so that the threads end together.
    for (std::int64_t i = a.first; is_diagonal && i < a.first + a.count; i += tile_) add(i, i);
    return tiles;
  }

  // Sums over the columns, some after the others, and hands on what is done with then.
  void sum(Term term, Strip a, Strip b, std::vector<Tile>& tiles) {
    const std::int64_t all = source_.rows().cols;
    const std::int64_t step = cols_of_panel(a.count);
    for (std::int64_t col = 0; col < all; col += step) {
      const std::int64_t cols = std::min(step, all - col);
      packed_a_.pack(source_, a.first, a.count, col, cols, executor_);
      if (b.first != a.first) packed_b_.pack(source_, b.first, b.count, col, cols, executor_);
      const DistancePanel& panel_a = packed_a_.panel();
      const DistancePanel& panel_b = b.first == a.first ? panel_a : packed_b_.panel();
      auto task = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
          Tile& tile = tiles[static_cast<std::size_t>(index)];
          const GroupRange groups_a = groups_of(tile.rows.i - a.first, tile.rows.i_rows);
          const GroupRange groups_b = groups_of(tile.rows.j - b.first, tile.rows.j_rows);
          for (std::int64_t block = 0; block < panel_a.blocks(); ++block) {
            DistancePanel::sum_block(term, block, panel_a, groups_a, panel_b, groups_b, tile.rows.i == tile.rows.j,
                                     tile.block, tile_);
            add_block(tile.rows, tile.block, tile.sums, col == 0 && block == 0);
          }
          if (col + cols == all) finish(term, tile);
        }
      };
      executor_.parallel_for(static_cast<std::int64_t>(tiles.size()), 1, task);
    }
  }

  GroupRange groups_of(std::int64_t first, std::int64_t count) const noexcept {
    const std::int64_t size = source_.all_kernels().group;
    return {first / size, (first + count + size - 1) / size};
  }

  void finish(Term term, Tile& tile) const {
    if (term == Term::product) {
      const std::int64_t pairs = squares_from_products(tile.rows, norms_, tile.squares);
      tile.needs_differences = are_many(pairs, tile.rows);
      if (tile.needs_differences) return;
      if (pairs > 0) add_few_differences(source_, tile.rows, tile.squares);
    } else {
      add_differences(tile.rows, tile.sums, tile.squares);
    }
    hand_on(tile.rows, tile.squares, sink_);
  }

  const RowSource& source_;
  const std::vector<double>& norms_;
  const TileSink& sink_;
  Executor& executor_;
  const std::int64_t tile_;
  PackedStrip packed_a_, packed_b_;
  LineBuffer memory_, differences_;
};

}  // namespace

void check_rows_shape(const char* operation, const ConstMatrixView& rows) {
  if (rows.rows < 1 || rows.cols < 1) {
    fail(operation, "rows must be [n >= 1, d >= 1], got [", rows.rows, ", ", rows.cols, "]");
  }
  check_view(operation, "rows", rows, {DType::f32, DType::f16, DType::bf16, DType::f64});
}

void check_rows(const char* operation, const ConstMatrixView& rows, Executor& executor) {
  check_rows_shape(operation, rows);
  check_finite(operation, "rows", rows, executor);
}

// Few rows: threads share out the columns. Each packs a block of all rows into memory that stays in its cache, and sums
// the block for all pairs; the blocks are then added in order.
bool AllDistances::is_small(const ConstMatrixView& rows) noexcept {
  return rows.rows <= kTiles[0] && rows.cols >= Rule::kProductCols;
}

double AllDistances::bytes(const ConstMatrixView& rows, int threads) noexcept {
  const double norms = 8.0 * static_cast<double>(rows.rows);
  if (!is_small(rows)) return norms + StripPairs::bytes(rows, threads);
  const std::int64_t values = rows.rows * kTiles[0] + kTiles[0] * kTiles[3];
  const std::int64_t blocks = (rows.cols + kBlockCols - 1) / kBlockCols;
  const std::int64_t panel = DistancePanel::size(distance_kernels(), rows.rows, std::min(rows.cols, kBlockCols));
  return norms + 8.0 * static_cast<double>(values * (2 + std::min<std::int64_t>(blocks, up_to(16, threads))) +
                                           (panel + 1) * threads);
}

AllDistances::AllDistances(const char* operation, const ConstMatrixView& rows, Executor& executor)
    : rows_(rows), source_(distance_kernels(), rows_), executor_(executor) {
  check_rows_shape(operation, rows);
  norms_.resize(static_cast<std::size_t>(rows_.rows));
  if (is_small(rows_)) {
    products_ = sum_blocks(Term::product);
    for (std::int64_t row = 0; row < rows_.rows; ++row) {
      norms_[static_cast<std::size_t>(row)] = products_.data()[row * kTiles[0] + row];
    }
  } else {
    auto task = [&](std::int64_t begin, std::int64_t end) {
      detail::squared_norms(source_, begin, nullptr, end - begin, norms_.data() + begin);
    };
    executor_.parallel_for(rows_.rows, rows_per_task(rows_.cols), task);
  }
  // The sum of squares of a row with NaN or Inf is one itself; that of large float64 values may be, too.
  if (!std::all_of(norms_.begin(), norms_.end(), [](double norm) { return std::isfinite(norm); })) {
    check_finite(operation, "rows", rows_, executor_);
  }
}

LineBuffer AllDistances::sum_blocks(Term term) const {
  const DistanceTile tile{0, rows_.rows, 0, rows_.rows, nullptr, kTiles[0]};
  const std::int64_t values = rows_.rows * kTiles[0] + kTiles[0] * kTiles[3];
  const std::int64_t blocks = (rows_.cols + kBlockCols - 1) / kBlockCols;
  const int threads = executor_.concurrency();
  const std::int64_t at_once = std::min<std::int64_t>(blocks, up_to(16, threads));
  const std::int64_t panel_size =
      DistancePanel::size(source_.all_kernels(), rows_.rows, std::min(rows_.cols, kBlockCols));
  LineBuffer sums, of_blocks, panels;
  sums.reserve(values);
  of_blocks.reserve(at_once * values);
  panels.reserve(threads * panel_size);
  std::mutex mutex;
  std::vector<double*> idle;  // memory for panels
  for (int thread = 0; thread < threads; ++thread) idle.push_back(panels.data() + thread * panel_size);
  for (std::int64_t first = 0; first < blocks; first += at_once) {
    const std::int64_t count = std::min(at_once, blocks - first);
    auto task = [&](std::int64_t begin, std::int64_t end) {
      double* memory;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        memory = idle.back();
        idle.pop_back();
      }
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int64_t col = (first + k) * kBlockCols;
        DistancePanel panel(source_, rows_.rows, col, std::min(kBlockCols, rows_.cols - col), memory);
        panel.pack(source_, 0, nullptr);
        DistancePanel::sum_block(term, 0, panel, panel.groups(), panel, panel.groups(), true,
                                 of_blocks.data() + k * values, kTiles[0]);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      idle.push_back(memory);
    };
    executor_.parallel_for(count, 1, task);
    for (std::int64_t k = 0; k < count; ++k) {
      add_block(tile, of_blocks.data() + k * values, sums.data(), first + k == 0);
    }
  }
  return sums;
}

void AllDistances::for_each_of_small(const TileSink& sink) {
  const DistanceTile tile{0, rows_.rows, 0, rows_.rows, nullptr, kTiles[0]};
  double* squares = products_.data();
  const std::int64_t pairs = squares_from_products(tile, norms_, squares);
  if (are_many(pairs, tile)) {
    add_differences(tile, sum_blocks(Term::difference).data(), squares);
  } else if (pairs > 0) {
    add_few_differences(source_, tile, squares);
  }
  hand_on(tile, squares, sink);
}

void AllDistances::for_each(const TileSink& sink) {
  if (is_small(rows_)) return for_each_of_small(sink);
  StripPairs(source_, norms_, sink, executor_).run();
}

}  // namespace stun_ext::detail
