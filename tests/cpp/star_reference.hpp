// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "support.hpp"

namespace stun_ext::test {

using Distances = std::vector<std::vector<double>>;

struct StarLabels {
  std::int64_t n_clusters;
  std::vector<std::int64_t> labels;
};

/// The star rule word by word, with the matrix that blocked pairs are written into.
inline StarLabels star_reference(Distances d, double threshold, std::int64_t min_clusters) {
  const std::size_t n = d.size();
  StarLabels result{static_cast<std::int64_t>(n), std::vector<std::int64_t>(n)};
  std::iota(result.labels.begin(), result.labels.end(), 0);
  std::vector<std::tuple<double, std::size_t, std::size_t>> pairs;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) pairs.emplace_back(d[i][j], i, j);
  }
  std::sort(pairs.begin(), pairs.end());
  for (const auto& [distance, i, j] : pairs) {
    if (distance >= threshold || result.n_clusters <= min_clusters) break;
    const std::int64_t a = result.labels[i], b = result.labels[j];
    if (a == b) continue;
    double farthest = -kInf;
    for (std::size_t c = 0; c < n; ++c) {
      if (result.labels[c] == a && c != j) farthest = std::max(farthest, d[std::min(c, j)][std::max(c, j)]);
      if (result.labels[c] == b && c != i) farthest = std::max(farthest, d[std::min(c, i)][std::max(c, i)]);
    }
    if (farthest < threshold) {
      for (std::int64_t& label : result.labels) {
        if (label == a || label == b) label = std::min(a, b);
      }
      --result.n_clusters;
    } else {
      d[i][j] = kInf;
    }
  }
  return result;
}

/// Symmetric, with a diagonal that must not be read.
inline Distances random_distances(std::mt19937& generator, std::size_t n, int kind) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> few(0, 3), many(0, 30);
  Distances d(n, std::vector<double>(n, kNaN));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) {
      double value = 1.0;                        // kind 0: all equal
      if (kind == 1) value = normal(generator);  // distinct, some negative
      if (kind == 2) value = few(generator);     // ties
      if (kind == 3) value = many(generator) < 9 ? kInf : few(generator) + 0.1 * normal(generator);
      d[i][j] = d[j][i] = static_cast<float>(value);
    }
  }
  return d;
}

inline Matrix matrix_of(const Distances& d, DType dtype = DType::f32, Layout layout = Layout::row_major) {
  const auto n = static_cast<std::int64_t>(d.size());
  Matrix matrix(dtype, n, n, layout);
  matrix.fill(
      [&](std::int64_t i, std::int64_t j) { return d[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]; });
  return matrix;
}

}  // namespace stun_ext::test
