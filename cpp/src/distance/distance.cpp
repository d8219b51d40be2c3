// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/distance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "distance/distance.hpp"
#include "load.hpp"

namespace stun_ext {
namespace detail {
namespace {

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
double scale_of(const char* operation, const std::vector<double>& squared_norms, bool divide_by_frobenius) {
  if (!divide_by_frobenius) return 1.0;
  const double norm = std::sqrt(std::accumulate(squared_norms.begin(), squared_norms.end(), 0.0));
  if (norm == 0.0) fail(operation, "rows must not all be zero to be divided by their Frobenius norm");
  if (!std::isfinite(norm))
    fail(operation, "rows must be small enough for their Frobenius norm to be finite, got ", norm);
  return norm;
}

// Writes value(i, j, distance) to both places of each pair, each line of memory in one go.
template <class To, class Value>
void store_tile_as(To* data, const MatrixView& out, const DistanceTile& tile, Value&& value) {
  To* upper = data + tile.i * out.row_stride + tile.j * out.col_stride;
  To* lower = data + tile.j * out.row_stride + tile.i * out.col_stride;
  for (std::int64_t row = 0; row < tile.i_rows; ++row) {
    for (std::int64_t col = tile.first(row); col < tile.j_rows; ++col) {
      const double stored = value(tile.i + row, tile.j + col, tile.values[row * tile.stride + col]);
      upper[row * out.row_stride + col * out.col_stride] = static_cast<To>(stored);
    }
  }
  for (std::int64_t col = 0; col < tile.j_rows; ++col) {
    const std::int64_t rows = std::min(tile.i_rows, tile.j + col - tile.i);  // those above the diagonal
    for (std::int64_t row = 0; row < rows; ++row) {
      lower[col * out.row_stride + row * out.col_stride] = upper[row * out.row_stride + col * out.col_stride];
    }
  }
}

template <class Value>
void store_tile(const MatrixView& out, const DistanceTile& tile, Value&& value) {
  if (out.dtype == DType::f32) {
    store_tile_as(static_cast<float*>(out.data), out, tile, value);
  } else {
    store_tile_as(static_cast<double*>(out.data), out, tile, value);
  }
}

}  // namespace
}  // namespace detail

void pairwise_distances(ConstMatrixView rows, bool divide_by_frobenius, MatrixView out, Executor& executor) {
  constexpr const char* kOperation = "pairwise_distances";
  detail::check_out(kOperation, out, rows.rows);
  detail::AllDistances distances(kOperation, rows, executor);
  const double scale = detail::scale_of(kOperation, distances.squared_norms(), divide_by_frobenius);
  for (std::int64_t i = 0; i < rows.rows; ++i) detail::store(out, i, i, 0.0);
  auto sink = [&](const detail::DistanceTile& tile) {
    detail::store_tile(out, tile, [=](std::int64_t, std::int64_t, double distance) { return distance / scale; });
  };
  distances.for_each(sink);
}

void condensed_distances(ConstMatrixView rows, Span<double> out, Executor& executor) {
  constexpr const char* kOperation = "condensed_distances";
  if (rows.rows >= std::int64_t{1} << 32) {  // before they are read: they may be one row, repeated
    detail::fail(kOperation, "rows must be fewer than 2^32, so that their pairs can be counted, got ", rows.rows);
  }
  detail::AllDistances distances(kOperation, rows, executor);
  const std::int64_t n = rows.rows;
  if (static_cast<std::int64_t>(out.size()) != n * (n - 1) / 2) {
    detail::fail(kOperation, "out must hold n(n-1)/2 = ", n * (n - 1) / 2, " values for n = ", n, ", got ", out.size());
  }
  auto sink = [&](const detail::DistanceTile& tile) {
    tile.for_each([&](std::int64_t i, std::int64_t j, double distance) {
      out[static_cast<std::size_t>(i * (2 * n - i - 1) / 2 + (j - i - 1))] = distance;
    });
  };
  distances.for_each(sink);
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
  detail::AllDistances distances(kOperation, rows, executor);
  const double scale = detail::scale_of(kOperation, distances.squared_norms(), divide_by_frobenius);
  for (std::int64_t i = 0; i < rows.rows; ++i) detail::store(out, i, i, 0.0);
  auto sink = [&](const detail::DistanceTile& tile) {
    detail::store_tile(out, tile, [&](std::int64_t i, std::int64_t j, double distance) {
      return distance / scale - mix * (detail::element(counts, i, j) / mean);
    });
  };
  distances.for_each(sink);
}

}  // namespace stun_ext
