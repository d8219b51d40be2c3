// SPDX-License-Identifier: Apache-2.0
#include "distance/distance_tile.hpp"

#include <cmath>

#include "distance/distance.hpp"

namespace stun_ext::detail {
namespace {

using Rule = SquaredDistanceRule;

constexpr std::int64_t kSinkRows = 16;  // float32 of a cache line, for sinks that write columns as well

}  // namespace

void add_block(const DistanceTile& tile, const double* block, double* sums, bool is_first) noexcept {
  for (std::int64_t row = 0; row < tile.i_rows; ++row, block += tile.stride, sums += tile.stride) {
    const std::int64_t begin = std::max<std::int64_t>(0, tile.i + row - tile.j);  // the diagonal holds norms
    if (is_first) {
      std::copy(block + begin, block + tile.j_rows, sums + begin);
    } else {
      for (std::int64_t col = begin; col < tile.j_rows; ++col) sums[col] += block[col];
    }
  }
}

std::int64_t squares_from_products(const DistanceTile& tile, const std::vector<double>& norms,
                                   double* values) noexcept {
  double by_differences = 0.0;
  for (std::int64_t row = 0; row < tile.i_rows; ++row) {
    const double norm = norms[static_cast<std::size_t>(tile.i + row)];
    const double* others = norms.data() + tile.j;
    double* of_row = values + row * tile.stride;
    for (std::int64_t col = tile.first(row); col < tile.j_rows; ++col) {
      of_row[col] = Rule::from_products(norm, others[col], of_row[col]);
      by_differences += std::min(of_row[col], 0.0);
    }
  }
  return static_cast<std::int64_t>(by_differences / Rule::kByDifferences);
}

bool are_many(std::int64_t pairs, const DistanceTile& tile) noexcept {
  const std::int64_t all = tile.i == tile.j ? tile.i_rows * (tile.i_rows - 1) / 2 : tile.i_rows * tile.j_rows;
  return 3 * pairs > all;  // from there on it is faster to sum all differences, packed
}

void add_few_differences(const RowSource& source, const DistanceTile& tile, double* values) {
  std::vector<RowPair> pairs;
  for (std::int64_t row = 0; row < tile.i_rows; ++row) {
    for (std::int64_t col = tile.first(row); col < tile.j_rows; ++col) {
      if (values[row * tile.stride + col] == Rule::kByDifferences) pairs.push_back({tile.i + row, tile.j + col});
    }
  }
  std::vector<double> squared(pairs.size());
  squared_differences(source, pairs, squared.data());
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    values[(pairs[k].i - tile.i) * tile.stride + pairs[k].j - tile.j] = squared[k];
  }
}

void add_differences(const DistanceTile& tile, const double* differences, double* values) noexcept {
  for (std::int64_t row = 0; row < tile.i_rows; ++row) {
    for (std::int64_t col = tile.first(row); col < tile.j_rows; ++col) {
      const std::int64_t k = row * tile.stride + col;
      if (values[k] == Rule::kByDifferences) values[k] = differences[k];
    }
  }
}

void hand_on(DistanceTile tile, double* values, const TileSink& sink) {
  const std::int64_t end = tile.i + tile.i_rows;
  for (; tile.i < end; tile.i += kSinkRows, values += kSinkRows * tile.stride) {
    tile.i_rows = std::min(kSinkRows, end - tile.i);
    for (std::int64_t row = 0; row < tile.i_rows; ++row) {
      double* of_row = values + row * tile.stride;
      for (std::int64_t col = tile.first(row); col < tile.j_rows; ++col) of_row[col] = std::sqrt(of_row[col]);
    }
    tile.values = values;
    sink(tile);
  }
}

}  // namespace stun_ext::detail
