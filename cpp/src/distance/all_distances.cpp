// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "distance/distance.hpp"
#include "distance/distance_tile.hpp"
#include "distance/scratch.hpp"
#include "distance/strip_pairs.hpp"

namespace stun_ext::detail {
namespace {

using Rule = SquaredDistanceRule;

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
  const std::int64_t at_once = std::min<std::int64_t>(blocks, (15 + threads) / threads * threads);
  const std::int64_t panel = DistancePanel::size(distance_kernels(), rows.rows, std::min(rows.cols, kBlockCols));
  return norms + 8.0 * static_cast<double>(values * (2 + at_once) + (panel + 1) * threads);
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
  } else if (strips_ = std::make_unique<StripPairs>(source_, executor_); !strips_->sum_products(norms_)) {
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
  const std::int64_t at_once = std::min<std::int64_t>(blocks, (15 + threads) / threads * threads);
  const std::int64_t panel_size =
      DistancePanel::size(source_.all_kernels(), rows_.rows, std::min(rows_.cols, kBlockCols));
  LineBuffer sums, of_blocks;
  sums.reserve(values);
  of_blocks.reserve(at_once * values);
  Scratch panels(threads, panel_size);
  for (std::int64_t first = 0; first < blocks; first += at_once) {
    const std::int64_t count = std::min(at_once, blocks - first);
    auto task = [&](std::int64_t begin, std::int64_t end) {
      const Scratch::Lease memory(panels);
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int64_t col = (first + k) * kBlockCols;
        DistancePanel panel(source_, rows_.rows, col, std::min(kBlockCols, rows_.cols - col), memory.data());
        panel.pack(source_, 0, nullptr);
        DistancePanel::sum_block(term, 0, panel, panel.groups(), panel, panel.groups(), true,
                                 of_blocks.data() + k * values, kTiles[0]);
      }
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

AllDistances::~AllDistances() = default;

void AllDistances::for_each(const TileSink& sink) {
  if (is_small(rows_)) return for_each_of_small(sink);
  strips_->run(norms_, sink);
}

}  // namespace stun_ext::detail
