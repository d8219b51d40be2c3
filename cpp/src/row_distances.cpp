// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "distance.hpp"

namespace stun_ext::detail {
namespace {

using Rule = SquaredDistanceRule;

// Calls step(x, y, col, cols) with some columns of row i and of `count` <= kManyRows others, until all are through.
template <class Step>
void for_each_block(const RowSource& source, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                    Step&& step) noexcept {
  double buffer[1 + kManyRows][kBlockCols];
  for (std::int64_t col = 0; col < source.rows().cols; col += kBlockCols) {
    const std::int64_t cols = std::min(kBlockCols, source.rows().cols - col);
    const void* y[kManyRows];
    for (std::int64_t j = 0; j < count; ++j) y[j] = source.block(others[j], col, cols, buffer[1 + j]);
    step(source.block(i, col, cols, buffer[0]), y, cols);
  }
}

// Σ(x − y)² for row i and `count` others.
void by_differences(const RowSource& source, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                    double* sums) noexcept {
  std::fill(sums, sums + count, 0.0);
  for_each_block(source, i, others, count, [&](const void* x, const void* const* y, std::int64_t cols) {
    source.kernels().differences(x, y, count, cols, sums);
  });
}

}  // namespace

void squared_norms(const RowSource& source, std::int64_t first, const std::uint32_t* index, std::int64_t count,
                   double* out) noexcept {
  for (std::int64_t k = 0; k < count; k += 1 + kManyRows) {
    const std::int64_t some = std::min(kManyRows, count - k - 1);
    const auto row = [&](std::int64_t r) {
      return index == nullptr ? static_cast<std::uint32_t>(first + k + r) : index[k + r];
    };
    std::uint32_t others[kManyRows];
    for (std::int64_t j = 0; j < some; ++j) others[j] = row(1 + j);
    if (some == 0) others[0] = row(0);  // products needs one
    double sums[1 + 2 * kManyRows] = {};
    for_each_block(source, row(0), others, std::max<std::int64_t>(some, 1),
                   [&](const void* x, const void* const* y, std::int64_t cols) {
                     source.kernels().products(x, y, std::max<std::int64_t>(some, 1), cols, sums);
                   });
    out[k] = sums[0];
    for (std::int64_t j = 0; j < some; ++j) out[k + 1 + j] = sums[2 + 2 * j];
  }
}

void squared_distances(const ConstMatrixView& rows, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                       double* out) noexcept {
  const RowSource source(distance_kernels(), rows);
  for (std::int64_t first = 0; first < count; first += kManyRows, others += kManyRows, out += kManyRows) {
    const std::int64_t some = std::min(kManyRows, count - first);
    std::fill(out, out + some, Rule::kByDifferences);
    if (rows.cols >= Rule::kProductCols) {
      double sums[1 + 2 * kManyRows] = {};
      for_each_block(source, i, others, some, [&](const void* x, const void* const* y, std::int64_t cols) {
        source.kernels().products(x, y, some, cols, sums);
      });
      for (std::int64_t j = 0; j < some; ++j) {
        out[j] = Rule::from_products(sums[0], sums[2 + 2 * j], sums[1 + 2 * j]);
      }
    }
    if (std::none_of(out, out + some, [](double squared) { return squared == Rule::kByDifferences; })) continue;
    double sums[kManyRows];
    by_differences(source, i, others, some, sums);
    for (std::int64_t j = 0; j < some; ++j) {
      if (out[j] == Rule::kByDifferences) out[j] = sums[j];
    }
  }
}

double squared_distance(const ConstMatrixView& rows, std::int64_t i, std::int64_t j) noexcept {
  const auto other = static_cast<std::uint32_t>(j);
  double squared;
  squared_distances(rows, i, &other, 1, &squared);
  return squared;
}

void squared_differences(const RowSource& source, const std::vector<RowPair>& pairs, double* out) noexcept {
  std::fill(out, out + pairs.size(), 0.0);
  double buffer[1 + kManyRows][kBlockCols];
  for (std::int64_t col = 0; col < source.rows().cols; col += kBlockCols) {  // outermost: many rows of it fit a cache
    const std::int64_t cols = std::min(kBlockCols, source.rows().cols - col);
    for (std::size_t first = 0, next; first < pairs.size(); first = next) {
      const void* y[kManyRows];
      std::int64_t count = 0;
      for (next = first; next < pairs.size() && pairs[next].i == pairs[first].i && count < kManyRows; ++next, ++count) {
        y[count] = source.block(pairs[next].j, col, cols, buffer[1 + count]);
      }
      source.kernels().differences(source.block(pairs[first].i, col, cols, buffer[0]), y, count, cols, out + first);
    }
  }
}

void SquaredDistanceBlock::compute(const ConstMatrixView& rows, const std::uint32_t* a, std::int64_t na,
                                   const std::uint32_t* b, std::int64_t nb, double* out) {
  constexpr std::int64_t kWorthPacking = 12;  // rows on either side
  constexpr std::int64_t kTileRows = 48;
  if (nb == 1) return squared_distances(rows, b[0], a, na, out);
  if (std::min(na, nb) < kWorthPacking || cols_ < Rule::kProductCols) {
    for (std::int64_t i = 0; i < na; ++i) squared_distances(rows, a[i], b, nb, out + i * nb);
    return;
  }
  const DistanceKernels& kernels = distance_kernels();
  const RowSource source(kernels, rows);
  norms_.resize(static_cast<std::size_t>(na + nb));
  double* norms_b = norms_.data() + na;
  squared_norms(source, 0, a, na, norms_.data());
  squared_norms(source, 0, b, nb, norms_b);
  constexpr std::int64_t kTileValues = kTileRows * kTileRows;
  const std::int64_t panel = DistancePanel::size(kernels, kTileRows, std::min(cols_, kBlockCols));
  memory_.reserve(2 * (panel + kTileValues));
  double* products = memory_.data() + 2 * panel;
  double* of_block = products + kTileValues;
  std::fill_n(of_block, kTileValues, 0.0);
  for (std::int64_t i0 = 0; i0 < na; i0 += kTileRows) {
    const std::int64_t i_rows = std::min(kTileRows, na - i0);
    for (std::int64_t j0 = 0; j0 < nb; j0 += kTileRows) {
      const std::int64_t j_rows = std::min(kTileRows, nb - j0);
      std::fill_n(products, kTileValues, 0.0);
      for (std::int64_t col = 0; col < cols_; col += kBlockCols) {
        const std::int64_t cols = std::min(kBlockCols, cols_ - col);
        DistancePanel panel_a(source, i_rows, col, cols, memory_.data());
        DistancePanel panel_b(source, j_rows, col, cols, memory_.data() + panel);
        panel_a.pack(source, 0, a + i0);
        panel_b.pack(source, 0, b + j0);
        DistancePanel::sum_block(Term::product, 0, panel_a, panel_a.groups(), panel_b, panel_b.groups(), false,
                                 of_block, kTileRows);
        for (std::int64_t k = 0; k < kTileValues; ++k) products[k] += of_block[k];
      }
      for (std::int64_t i = 0; i < i_rows; ++i) {
        for (std::int64_t j = 0; j < j_rows; ++j) {
          double squared = Rule::from_products(norms_[static_cast<std::size_t>(i0 + i)], norms_b[j0 + j],
                                               products[i * kTileRows + j]);
          if (squared == Rule::kByDifferences) by_differences(source, a[i0 + i], b + j0 + j, 1, &squared);
          out[(i0 + i) * nb + j0 + j] = squared;
        }
      }
    }
  }
}

}  // namespace stun_ext::detail
