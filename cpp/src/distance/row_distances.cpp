// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "distance/distance.hpp"

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
  if (count == 1) {
    *out = squared_distance(rows, i, *others);
    return;
  }
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
  const RowSource source(distance_kernels(), rows);
  double buffer[2][kBlockCols];
  double sums[4] = {};
  for (std::int64_t col = 0; col < rows.cols; col += kBlockCols) {
    const std::int64_t cols = std::min(kBlockCols, rows.cols - col);
    source.kernels().pair(source.block(i, col, cols, buffer[0]), source.block(j, col, cols, buffer[1]), cols, sums);
  }
  const double squared =
      rows.cols < Rule::kProductCols ? Rule::kByDifferences : Rule::from_products(sums[0], sums[1], sums[2]);
  return squared == Rule::kByDifferences ? sums[3] : squared;
}

namespace {

// Of many pairs at once, four of one row together, filled up where there are fewer: one alone would take as long.
void sum_pairs(Term term, const RowSource& source, const std::vector<RowPair>& pairs, double* out) noexcept {
  auto* const add = term == Term::product ? source.kernels().dots : source.kernels().differences;
  std::fill(out, out + pairs.size(), 0.0);
  double buffer[1 + kManyRows][kBlockCols];
  for (std::int64_t col = 0; col < source.rows().cols; col += kBlockCols) {  // outermost: many rows of it fit a cache
    const std::int64_t cols = std::min(kBlockCols, source.rows().cols - col);
    for (std::size_t first = 0, next; first < pairs.size(); first = next) {
      const void* y[kManyRows] = {};
      std::int64_t count = 0;
      for (next = first; next < pairs.size() && pairs[next].i == pairs[first].i && count < kManyRows; ++next, ++count) {
        y[count] = source.block(pairs[next].j, col, cols, buffer[1 + count]);
      }
      double sums[kManyRows] = {};
      for (std::int64_t k = 0; k < count; ++k) sums[k] = out[static_cast<std::int64_t>(first) + k];
      std::fill(y + count, y + kManyRows, y[0]);
      add(source.block(pairs[first].i, col, cols, buffer[0]), y, kManyRows, cols, sums);
      std::copy_n(sums, count, out + first);
    }
  }
}

}  // namespace

void squared_differences(const RowSource& source, const std::vector<RowPair>& pairs, double* out) noexcept {
  sum_pairs(Term::difference, source, pairs, out);
}

void squared_distances(const RowSource& source, const std::vector<RowPair>& pairs, const double* norms, double* out) {
  if (source.rows().cols < Rule::kProductCols) return sum_pairs(Term::difference, source, pairs, out);
  sum_pairs(Term::product, source, pairs, out);
  std::vector<RowPair> cancelled;
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    out[k] = Rule::from_products(norms[pairs[k].i], norms[pairs[k].j], out[k]);
    if (out[k] == Rule::kByDifferences) cancelled.push_back(pairs[k]);
  }
  if (cancelled.empty()) return;
  std::vector<double> sums(cancelled.size());
  sum_pairs(Term::difference, source, cancelled, sums.data());
  std::size_t next = 0;
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    if (out[k] == Rule::kByDifferences) out[k] = sums[next++];
  }
}

double SquaredDistanceBlock::bytes(std::int64_t cols, std::int64_t rows) noexcept {
  if (cols < Rule::kProductCols) return 0.0;
  const std::int64_t panel = DistancePanel::size(distance_kernels(), kTileRows, std::min(cols, kBlockCols));
  return 8.0 * static_cast<double>(2 * panel + 2 * kTileRows * kTileRows + rows);
}

void SquaredDistanceBlock::compute(const ConstMatrixView& rows, const std::uint32_t* a, std::int64_t na,
                                   const std::uint32_t* b, std::int64_t nb, double* out) {
  constexpr std::int64_t kWorthPacking = 12;  // rows on either side
  if (nb == 1) return squared_distances(rows, b[0], a, na, out);
  if (std::min(na, nb) < kWorthPacking || cols_ < Rule::kProductCols) {
    for (std::int64_t i = 0; i < na; ++i) squared_distances(rows, a[i], b, nb, out + i * nb);
    return;
  }
  const RowSource source(distance_kernels(), rows);
  norms_.resize(static_cast<std::size_t>(na + nb));
  squared_norms(source, 0, a, na, norms_.data());
  squared_norms(source, 0, b, nb, norms_.data() + na);
  for (std::int64_t i = 0; i < na; i += kTileRows) {
    for (std::int64_t j = 0; j < nb; j += kTileRows) {
      compute_tile(source, {a + i, std::min(kTileRows, na - i), norms_.data() + i},
                   {b + j, std::min(kTileRows, nb - j), norms_.data() + na + j}, out + i * nb + j, nb);
    }
  }
}

void SquaredDistanceBlock::compute_tile(const RowSource& source, const Rows& a, const Rows& b, double* out,
                                        std::int64_t stride) {
  sum(Term::product, source, a, b, out, stride);
  std::int64_t cancelled = 0;
  for (std::int64_t i = 0; i < a.count; ++i) {
    for (std::int64_t j = 0; j < b.count; ++j) {
      double& squared = out[i * stride + j];
      squared = Rule::from_products(a.norms[i], b.norms[j], squared);
      cancelled += squared == Rule::kByDifferences ? 1 : 0;
    }
  }
  if (cancelled == 0) return;
  // All, packed, where these are many.
  differences_.resize(static_cast<std::size_t>(kTileRows * kTileRows));
  const bool are_many = 3 * cancelled > a.count * b.count;
  if (are_many) sum(Term::difference, source, a, b, differences_.data(), kTileRows);
  for (std::int64_t i = 0; i < a.count; ++i) {
    for (std::int64_t j = 0; j < b.count; ++j) {
      double& squared = out[i * stride + j];
      if (squared != Rule::kByDifferences) continue;
      squared = are_many ? differences_[static_cast<std::size_t>(i * kTileRows + j)]
                         : squared_distance(source.rows(), a.index[i], b.index[j]);
    }
  }
}

void SquaredDistanceBlock::sum(Term term, const RowSource& source, const Rows& a, const Rows& b, double* out,
                               std::int64_t stride) {
  const std::int64_t panel = DistancePanel::size(source.all_kernels(), kTileRows, std::min(cols_, kBlockCols));
  memory_.reserve(2 * panel + kTileRows * kTileRows);
  double* block = memory_.data() + 2 * panel;
  for (std::int64_t col = 0; col < cols_; col += kBlockCols) {
    const std::int64_t cols = std::min(kBlockCols, cols_ - col);
    DistancePanel panel_a(source, a.count, col, cols, memory_.data());
    DistancePanel panel_b(source, b.count, col, cols, memory_.data() + panel);
    panel_a.pack(source, 0, a.index);
    panel_b.pack(source, 0, b.index);
    DistancePanel::sum_block(term, 0, panel_a, panel_a.groups(), panel_b, panel_b.groups(), false, block, kTileRows);
    for (std::int64_t i = 0; i < a.count; ++i) {
      for (std::int64_t j = 0; j < b.count; ++j) {
        out[i * stride + j] = block[i * kTileRows + j] + (col > 0 ? out[i * stride + j] : 0.0);
      }
    }
  }
}

}  // namespace stun_ext::detail
