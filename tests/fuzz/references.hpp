// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numeric>

#include "../cpp/star_reference.hpp"
#include "fuzz.hpp"
#include "stun_ext/cluster.hpp"

/// What the operations give by their definitions, for the fuzzers to compare with.
namespace stun_ext::fuzz {

/// Euclidean distance in long double; the float64 sums of the library may over- or underflow outside of its range.
inline long double distance(const AnyMatrix& rows, std::int64_t i, std::int64_t j) {
  long double sum = 0;
  for (std::int64_t c = 0; c < rows.view().cols; ++c) {
    const long double difference = static_cast<long double>(rows.get(i, c)) - rows.get(j, c);
    sum += difference * difference;
  }
  return std::sqrt(sum);
}

inline void check_distances(const AnyMatrix& rows, const std::vector<double>& condensed) {
  std::size_t pair = 0;
  for (std::int64_t i = 0; i < rows.view().rows; ++i) {
    for (std::int64_t j = i + 1; j < rows.view().rows; ++j, ++pair) {
      const double actual = condensed[pair];
      require(actual >= 0.0, "a distance is not negative and not NaN");
      const long double expected = distance(rows, i, j);
      if (expected == 0) require(actual == 0.0, "equal rows are at distance zero");
      if (expected < 1e-150L || expected > 1e153L) continue;
      require(std::abs(actual - expected) <= 1e-12L * expected, "the distance by its definition");
    }
  }
}

/// The upper triangle of experts [first, first + size).
inline test::Distances upper(const AnyMatrix& matrix, std::int64_t first, std::int64_t size) {
  test::Distances distances(static_cast<std::size_t>(size), std::vector<double>(static_cast<std::size_t>(size)));
  for (std::int64_t i = 0; i < size; ++i) {
    for (std::int64_t j = i + 1; j < size; ++j) {
      distances[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = matrix.get(first + i, first + j);
    }
  }
  return distances;
}

/// Observations under a node, for a dendrogram that was accepted.
inline void collect(const std::vector<Merge>& merges, std::size_t n, std::size_t node,
                    std::vector<std::size_t>& members) {
  if (node < n) return members.push_back(node);
  collect(merges, n, static_cast<std::size_t>(merges[node - n].first), members);
  collect(merges, n, static_cast<std::size_t>(merges[node - n].second), members);
}

/// Labels when each merge with is_applied gives all its members the lowest one.
inline std::vector<std::int64_t> labels_of(const std::vector<Merge>& merges, std::size_t n,
                                           const std::vector<bool>& is_applied) {
  std::vector<std::int64_t> labels(n);
  std::iota(labels.begin(), labels.end(), std::int64_t{0});
  for (std::size_t i = 0; i < merges.size(); ++i) {
    if (!is_applied[i]) continue;
    std::vector<std::size_t> members;
    collect(merges, n, n + i, members);
    const auto lowest = static_cast<std::int64_t>(*std::min_element(members.begin(), members.end()));
    for (const std::size_t member : members) labels[member] = lowest;
  }
  return labels;
}

}  // namespace stun_ext::fuzz
