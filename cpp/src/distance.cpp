// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/distance.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "dispatch.hpp"
#include "distance.hpp"
#include "kernels/distance.hpp"
#include "load.hpp"

namespace stun_ext {
namespace detail {
namespace {

// Rows in multiples of what the kernels take at once (3 or 5). A pair of tiles and its lanes fit 512 KiB.
constexpr std::int64_t kRowStep = 15;
constexpr std::int64_t kTileRows = 60;
constexpr std::int64_t kTileCols = 128;
constexpr std::int64_t kTileStride = kTileCols + 8;  // not a power of two, or all rows would share the same cache sets

// The fixed tree that ends every sum over the lanes.
double sum_lanes(const double* lanes) noexcept {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Some columns of a row, as float64.
void load_row(const DistanceKernels& kernels, const ConstMatrixView& rows, std::int64_t row, std::int64_t col,
              std::int64_t cols, double* to) noexcept {
  const std::int64_t offset = row * rows.row_stride + col;
  if (rows.col_stride != 1 || rows.dtype == DType::f64 || rows.dtype == DType::i64) {
    load_block(rows, row, 1, col, cols, to, cols);
  } else if (rows.dtype == DType::f32) {
    kernels.widen_f32(static_cast<const float*>(rows.data) + offset, cols, to);
  } else if (rows.dtype == DType::bf16) {
    kernels.widen_bf16(static_cast<const std::uint16_t*>(rows.data) + offset, cols, to);
  } else {
    kernels.widen_f16(static_cast<const std::uint16_t*>(rows.data) + offset, cols, to);
  }
}

// Columns of a block, rounded up to whole lanes; the padding is zero in all rows and adds nothing.
std::int64_t load_tile(const DistanceKernels& kernels, const ConstMatrixView& rows, std::int64_t row,
                       std::int64_t count, std::int64_t col, std::int64_t cols, double* tile) noexcept {
  if (rows.col_stride == 1) {
    for (std::int64_t r = 0; r < count; ++r) load_row(kernels, rows, row + r, col, cols, tile + r * kTileStride);
  } else {
    load_block(rows, row, count, col, cols, tile, kTileStride);  // transposed ones by blocks
  }
  const std::int64_t padded = (cols + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t r = 0; r < count; ++r) {
    for (std::int64_t c = cols; c < padded; ++c) tile[r * kTileStride + c] = 0.0;
  }
  return padded;
}

struct Tiles {
  std::vector<double> a = std::vector<double>(static_cast<std::size_t>(kTileRows * kTileStride));
  std::vector<double> b = std::vector<double>(static_cast<std::size_t>(kTileRows * kTileStride));
  std::vector<double> lanes = std::vector<double>(static_cast<std::size_t>(kTileRows * kTileRows * kLanes));
};

void distances_of_tile(const ConstMatrixView& rows, std::int64_t i0, std::int64_t i_rows, std::int64_t j0,
                       std::int64_t j_rows, const PairSink& sink, Tiles& tiles, const DistanceKernels& kernels) {
  std::fill(tiles.lanes.begin(), tiles.lanes.begin() + i_rows * j_rows * kLanes, 0.0);
  const bool diagonal = i0 == j0;
  for (std::int64_t col = 0; col < rows.cols; col += kTileCols) {
    const std::int64_t cols = std::min(kTileCols, rows.cols - col);
    const std::int64_t padded = load_tile(kernels, rows, j0, j_rows, col, cols, tiles.b.data());
    if (!diagonal) {
      load_tile(kernels, rows, i0, i_rows, col, cols, tiles.a.data());
      kernels.squared_differences(tiles.a.data(), i_rows, kTileStride, tiles.b.data(), j_rows, kTileStride, padded,
                                  tiles.lanes.data());
      continue;
    }
    for (std::int64_t i = 0; i < i_rows; i += kRowStep) {  // some rows with themselves and those after them
      const std::int64_t some = std::min(kRowStep, i_rows - i);
      const double* from = tiles.b.data() + i * kTileStride;
      kernels.squared_differences(from, some, kTileStride, from, j_rows - i, kTileStride, padded,
                                  tiles.lanes.data() + i * j_rows * kLanes);
    }
  }
  for (std::int64_t i = 0; i < i_rows; ++i) {
    const std::int64_t first = diagonal ? i / kRowStep * kRowStep : 0;  // of a strip's columns
    const double* lanes = tiles.lanes.data() + (first * j_rows + (i - first) * (j_rows - first) - first) * kLanes;
    if (!diagonal) lanes = tiles.lanes.data() + i * j_rows * kLanes;
    for (std::int64_t j = diagonal ? i + 1 : 0; j < j_rows; ++j) {
      sink(i0 + i, j0 + j, std::sqrt(sum_lanes(lanes + j * kLanes)));
    }
  }
}

// ‖X‖_F² in an order fixed by the shape: lanes over the columns of each row, then the rows in turn.
double squared_frobenius(const ConstMatrixView& rows, Executor& executor) {
  const DistanceKernels& kernels = STUN_EXT_KERNELS(distance);
  std::vector<double> row_sums(static_cast<std::size_t>(rows.rows));
  auto task = [&](std::int64_t begin, std::int64_t end) {
    double values[kTileStride];
    const double zeros[kTileStride] = {};
    for (std::int64_t row = begin; row < end; ++row) {
      double lanes[kLanes] = {};
      for (std::int64_t col = 0; col < rows.cols; col += kTileCols) {
        const std::int64_t cols = std::min(kTileCols, rows.cols - col);
        const std::int64_t padded = load_tile(kernels, rows, row, 1, col, cols, values);
        kernels.squared_differences(zeros, 1, kTileStride, values, 1, kTileStride, padded, lanes);
      }
      row_sums[static_cast<std::size_t>(row)] = sum_lanes(lanes);
    }
  };
  executor.parallel_for(rows.rows, rows_per_task(rows.cols), task);
  double sum = 0.0;
  for (const double row_sum : row_sums) sum += row_sum;
  return sum;
}

// For operations too small to be given threads.
class SerialExecutor final : public Executor {
 public:
  int concurrency() const noexcept override { return 1; }
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    for (std::int64_t begin = 0; begin < count; begin += grain) task(begin, std::min(begin + grain, count));
  }
};

double mean_of_counts(const char* operation, const ConstMatrixView& counts, Executor& executor) {
  if (counts.rows != counts.cols || counts.rows == 0) {
    fail(operation, "counts must be square and not empty, got [", counts.rows, ", ", counts.cols, "]");
  }
  check_view(operation, "counts", counts, {DType::f32, DType::f64, DType::i64});
  check_finite(operation, "counts", counts, executor);
  double sum = 0.0;
  for (std::int64_t i = 0; i < counts.rows; ++i) {
    if (const double diagonal = element(counts, i, i); diagonal != 0.0) {
      fail(operation, "counts must have a zero diagonal, got ", diagonal, " in row ", i);
    }
    for (std::int64_t j = 0; j < counts.cols; ++j) {
      const double value = element(counts, i, j);
      if (j < i && value != element(counts, j, i)) {
        fail(operation, "counts must be symmetric, got ", value, " at (", i, ", ", j, ") and ", element(counts, j, i),
             " at (", j, ", ", i, ")");
      }
      sum += value;
    }
  }
  const double mean = sum / (static_cast<double>(counts.rows) * static_cast<double>(counts.cols));
  if (!(std::abs(mean) > 0.0))
    fail(operation, "counts must not have mean zero: no two experts were routed to together");
  return mean;
}

void check_out(const char* operation, const MatrixView& out, std::int64_t n) {
  if (out.rows != n || out.cols != n) {
    fail(operation, "out must be [", n, ", ", n, "], got [", out.rows, ", ", out.cols, "]");
  }
  check_writable_view(operation, "out", out, {DType::f32, DType::f64});
}

// What every distance is divided by: ‖X‖_F or 1.
double scale_of(const char* operation, const ConstMatrixView& rows, bool divide_by_frobenius, Executor& executor) {
  if (!divide_by_frobenius) return 1.0;
  const double norm = std::sqrt(squared_frobenius(rows, executor));
  if (norm == 0.0) fail(operation, "rows must not all be zero to be divided by their Frobenius norm");
  return norm;
}

}  // namespace

void check_rows(const char* operation, const ConstMatrixView& rows, Executor& executor) {
  if (rows.rows < 1 || rows.cols < 1) {
    fail(operation, "rows must be [n >= 1, d >= 1], got [", rows.rows, ", ", rows.cols, "]");
  }
  check_view(operation, "rows", rows, {DType::f32, DType::f16, DType::bf16, DType::f64});
  check_finite(operation, "rows", rows, executor);
}

namespace {

template <class Stored>
void row_with_rows(void (*kernel)(const Stored*, const Stored* const*, std::int64_t, std::int64_t, double*) noexcept,
                   const ConstMatrixView& rows, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                   double* lanes) noexcept {
  const auto* data = static_cast<const Stored*>(rows.data);
  const Stored* b[kManyRows];
  for (std::int64_t j = 0; j < count; ++j) b[j] = data + others[j] * rows.row_stride;
  kernel(data + i * rows.row_stride, b, count, rows.cols, lanes);
}

}  // namespace

void squared_distances(const ConstMatrixView& rows, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                       double* out) noexcept {
  const DistanceKernels& kernels = STUN_EXT_KERNELS(distance);
  double lanes[kManyRows * kLanes];
  for (std::int64_t first = 0; first < count; first += kManyRows) {
    const std::int64_t some = std::min(kManyRows, count - first);
    const std::uint32_t* some_others = others + first;
    if (rows.col_stride != 1 || rows.dtype == DType::i64) {
      double a[kTileCols], b[kTileCols];
      std::fill(lanes, lanes + some * kLanes, 0.0);
      for (std::int64_t col = 0; col < rows.cols; col += kTileCols) {
        const std::int64_t cols = std::min(kTileCols, rows.cols - col);
        const std::int64_t padded = load_tile(kernels, rows, i, 1, col, cols, a);
        for (std::int64_t j = 0; j < some; ++j) {
          load_tile(kernels, rows, some_others[j], 1, col, cols, b);
          kernels.squared_differences(a, 1, kTileStride, b, 1, kTileStride, padded, lanes + j * kLanes);
        }
      }
    } else if (rows.dtype == DType::f32) {
      row_with_rows(kernels.row_with_rows_f32, rows, i, some_others, some, lanes);
    } else if (rows.dtype == DType::bf16) {
      row_with_rows(kernels.row_with_rows_bf16, rows, i, some_others, some, lanes);
    } else if (rows.dtype == DType::f16) {
      row_with_rows(kernels.row_with_rows_f16, rows, i, some_others, some, lanes);
    } else {
      row_with_rows(kernels.row_with_rows_f64, rows, i, some_others, some, lanes);
    }
    for (std::int64_t j = 0; j < some; ++j) out[first + j] = sum_lanes(lanes + j * kLanes);
  }
}

double squared_distance(const ConstMatrixView& rows, std::int64_t i, std::int64_t j) noexcept {
  const auto other = static_cast<std::uint32_t>(j);
  double squared;
  squared_distances(rows, i, &other, 1, &squared);
  return squared;
}

void SquaredDistanceBlock::compute(const ConstMatrixView& rows, const std::uint32_t* a, std::int64_t na,
                                   const std::uint32_t* b, std::int64_t nb, double* out) {
  if (na == 1 || nb == 1) {
    if (na == 1) return squared_distances(rows, a[0], b, nb, out);
    return squared_distances(rows, b[0], a, na, out);
  }
  const DistanceKernels& kernels = STUN_EXT_KERNELS(distance);
  const auto grow = [](std::vector<double>& buffer, std::int64_t size) {
    if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(static_cast<std::size_t>(size));
  };
  grow(tile_a_, kTileRows * kTileStride);
  grow(tile_b_, kTileRows * kTileStride);
  grow(lanes_, kTileRows * kTileRows * kLanes);
  for (std::int64_t i0 = 0; i0 < na; i0 += kTileRows) {
    const std::int64_t i_rows = std::min(kTileRows, na - i0);
    for (std::int64_t j0 = 0; j0 < nb; j0 += kTileRows) {
      const std::int64_t j_rows = std::min(kTileRows, nb - j0);
      std::fill(lanes_.begin(), lanes_.begin() + i_rows * j_rows * kLanes, 0.0);
      for (std::int64_t col = 0; col < cols_; col += kTileCols) {
        const std::int64_t cols = std::min(kTileCols, cols_ - col);
        std::int64_t padded = 0;
        for (std::int64_t r = 0; r < i_rows; ++r) {
          padded = load_tile(kernels, rows, a[i0 + r], 1, col, cols, tile_a_.data() + r * kTileStride);
        }
        for (std::int64_t r = 0; r < j_rows; ++r) {
          load_tile(kernels, rows, b[j0 + r], 1, col, cols, tile_b_.data() + r * kTileStride);
        }
        kernels.squared_differences(tile_a_.data(), i_rows, kTileStride, tile_b_.data(), j_rows, kTileStride, padded,
                                    lanes_.data());
      }
      for (std::int64_t i = 0; i < i_rows; ++i) {
        for (std::int64_t j = 0; j < j_rows; ++j) {
          out[(i0 + i) * nb + j0 + j] = sum_lanes(lanes_.data() + (i * j_rows + j) * kLanes);
        }
      }
    }
  }
}

void for_each_distance(const ConstMatrixView& rows, PairSink sink, Executor& executor) {
  const DistanceKernels& kernels = STUN_EXT_KERNELS(distance);
  const std::int64_t n = rows.rows;
  // Smaller tiles where there would be too few for every thread; the sums do not depend on it.
  std::int64_t parts = (n + kTileRows - 1) / kTileRows;
  while (parts * (parts + 1) / 2 < 4 * executor.concurrency() && n / parts > kRowStep) ++parts;
  const std::int64_t tile = ((n + parts - 1) / parts + kRowStep - 1) / kRowStep * kRowStep;
  const std::int64_t tiles = (n + tile - 1) / tile;
  auto task = [&](std::int64_t begin, std::int64_t end) {
    Tiles buffers;
    for (std::int64_t index = begin; index < end; ++index) {
      // Tiles of the upper triangle, column by column: index = j(j+1)/2 + i with i <= j.
      auto j = static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
      while (j * (j + 1) / 2 > index) --j;
      while ((j + 1) * (j + 2) / 2 <= index) ++j;
      const std::int64_t i = index - j * (j + 1) / 2;
      distances_of_tile(rows, i * tile, std::min(tile, n - i * tile), j * tile, std::min(tile, n - j * tile), sink,
                        buffers, kernels);
    }
  };
  const std::int64_t count = tiles * (tiles + 1) / 2;
  executor.parallel_for(count, std::max<std::int64_t>(1, count / (8 * executor.concurrency())), task);
}

}  // namespace detail

void pairwise_distances(ConstMatrixView rows, bool divide_by_frobenius, MatrixView out, Executor& executor) {
  constexpr const char* kOperation = "pairwise_distances";
  detail::check_out(kOperation, out, rows.rows);
  detail::check_rows(kOperation, rows, executor);
  const double scale = detail::scale_of(kOperation, rows, divide_by_frobenius, executor);
  for (std::int64_t i = 0; i < rows.rows; ++i) detail::store(out, i, i, 0.0);
  auto sink = [&](std::int64_t i, std::int64_t j, double distance) {
    detail::store(out, i, j, distance / scale);
    detail::store(out, j, i, distance / scale);
  };
  detail::for_each_distance(rows, sink, executor);
}

void condensed_distances(ConstMatrixView rows, Span<double> out, Executor& executor) {
  constexpr const char* kOperation = "condensed_distances";
  detail::check_rows(kOperation, rows, executor);
  const std::int64_t n = rows.rows;
  if (static_cast<std::int64_t>(out.size()) != n * (n - 1) / 2) {
    detail::fail(kOperation, "out must hold n(n-1)/2 = ", n * (n - 1) / 2, " values for n = ", n, ", got ", out.size());
  }
  auto sink = [&](std::int64_t i, std::int64_t j, double distance) {
    out[static_cast<std::size_t>(i * (2 * n - i - 1) / 2 + (j - i - 1))] = distance;
  };
  detail::for_each_distance(rows, sink, executor);
}

void coactivation_distances(ConstMatrixView counts, MatrixView out) {
  constexpr const char* kOperation = "coactivation_distances";
  detail::SerialExecutor executor;
  const double mean = std::abs(detail::mean_of_counts(kOperation, counts, executor));
  detail::check_out(kOperation, out, counts.rows);
  for (std::int64_t i = 0; i < counts.rows; ++i) {
    for (std::int64_t j = 0; j < counts.cols; ++j) {
      detail::store(out, i, j, 0.0 - detail::element(counts, i, j) / mean);  // 0 − x, so that no entry is −0
    }
  }
}

void mixed_distances(ConstMatrixView rows, ConstMatrixView counts, double mix, bool divide_by_frobenius, MatrixView out,
                     Executor& executor) {
  constexpr const char* kOperation = "mixed_distances";
  if (!std::isfinite(mix)) detail::fail(kOperation, "mix must be finite, got ", mix);
  if (rows.rows != counts.rows) {
    detail::fail(kOperation, "rows and counts must agree on the number of experts, got ", rows.rows, " and ",
                 counts.rows);
  }
  detail::check_out(kOperation, out, rows.rows);
  const double mean = std::abs(detail::mean_of_counts(kOperation, counts, executor));
  detail::check_rows(kOperation, rows, executor);
  const double scale = detail::scale_of(kOperation, rows, divide_by_frobenius, executor);
  for (std::int64_t i = 0; i < rows.rows; ++i) detail::store(out, i, i, 0.0);
  auto sink = [&](std::int64_t i, std::int64_t j, double distance) {
    const double mixed = distance / scale - mix * (detail::element(counts, i, j) / mean);
    detail::store(out, i, j, mixed);
    detail::store(out, j, i, mixed);
  };
  detail::for_each_distance(rows, sink, executor);
}

}  // namespace stun_ext
