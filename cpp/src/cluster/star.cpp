// SPDX-License-Identifier: Apache-2.0
#include "cluster/star.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "check.hpp"
#include "load.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace detail {
namespace {

constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();
constexpr std::int64_t kMostExperts = 65536;  // so that a rank fits 32 bits

}  // namespace

void check_star_distances(const char* operation, const ConstMatrixView& distances) {
  if (distances.rows != distances.cols || distances.rows < 1 || distances.rows > kMostExperts) {
    fail(operation, "distances must be [E, E] with E in [1, ", kMostExperts, "], got [", distances.rows, ", ",
         distances.cols, "]");
  }
  check_view(operation, "distances", distances, {DType::f32, DType::f64});
  std::vector<double> row(static_cast<std::size_t>(distances.cols));
  for (std::int64_t i = 0; i < distances.rows; ++i) {
    load_block(distances, i, 1, 0, distances.cols, row.data(), distances.cols);
    row[static_cast<std::size_t>(i)] = 0.0;  // not read
    for (std::size_t j = 0; j < row.size(); ++j) {
      if (std::isnan(row[j]) || row[j] == -std::numeric_limits<double>::infinity()) {
        fail(operation, "distances must not be NaN or -Inf, got ", row[j], " in row ", i, ", column ", j);
      }
    }
  }
}

StarProblem::StarProblem(const ConstMatrixView& distances, std::int64_t first, std::int64_t size, double below)
    : size_(size), labels_(static_cast<std::size_t>(size)), members_(static_cast<std::size_t>(size)) {
  struct Candidate {
    double distance;
    Pair pair;
  };
  const auto n = static_cast<std::size_t>(size);
  std::vector<Candidate> candidates;
  std::vector<double> row(n);
  for (std::size_t i = 0; i < n; ++i) {
    load_block(distances, first + static_cast<std::int64_t>(i), 1, first, size, row.data(), size);
    for (std::size_t j = i + 1; j < n; ++j) {
      if (row[j] < below)
        candidates.push_back({row[j], {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(j)}});
    }
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    if (a.distance != b.distance) return a.distance < b.distance;
    return a.pair.i != b.pair.i ? a.pair.i < b.pair.i : a.pair.j < b.pair.j;
  });
  rank_.assign(n * n, kNever);
  pairs_.reserve(candidates.size());
  sorted_.reserve(candidates.size());
  for (const Candidate& candidate : candidates) {
    const auto place = static_cast<std::uint32_t>(pairs_.size());
    rank(candidate.pair.i, candidate.pair.j) = rank(candidate.pair.j, candidate.pair.i) = place;
    pairs_.push_back(candidate.pair);
    sorted_.push_back(candidate.distance);
  }
  for (std::size_t i = 0; i < n; ++i) rank(i, i) = 0;  // an expert is never apart from itself
}

std::size_t StarProblem::pairs_below(double threshold) const noexcept {
  return static_cast<std::size_t>(std::lower_bound(sorted_.begin(), sorted_.end(), threshold) - sorted_.begin());
}

std::uint32_t StarProblem::highest_rank(std::size_t expert, const std::vector<std::uint32_t>& members,
                                        std::size_t pairs) noexcept {
  const std::uint32_t* ranks = rank_.data() + expert * static_cast<std::size_t>(size_);
  std::uint32_t highest = 0;
  for (const std::uint32_t member : members) {
    highest = std::max(highest, ranks[member]);
    if (highest >= pairs) break;
  }
  return highest;
}

StarResult StarProblem::run(std::size_t pairs, std::int64_t min_clusters) {
  std::iota(labels_.begin(), labels_.end(), std::int64_t{0});
  for (std::size_t i = 0; i < members_.size(); ++i) members_[i].assign(1, static_cast<std::uint32_t>(i));
  StarResult result{size_, 0};
  for (std::size_t place = 0; place < pairs && result.n_clusters > min_clusters; ++place) {
    const auto [i, j] = pairs_[place];
    auto lower = static_cast<std::size_t>(labels_[i]);
    auto higher = static_cast<std::size_t>(labels_[j]);
    if (lower == higher) continue;
    std::uint32_t highest = highest_rank(j, members_[lower], pairs);
    if (highest < pairs) highest = std::max(highest, highest_rank(i, members_[higher], pairs));
    if (highest >= pairs) {
      rank(i, j) = rank(j, i) = kNever;
      blocked_.push_back(static_cast<std::uint32_t>(place));
      continue;
    }
    // With fewer pairs, down to just above the highest rank that a merge needed, every merge still happens, every
    // test that failed still fails, and the pairs that are no longer seen did nothing.
    result.valid_from = std::max(result.valid_from, static_cast<std::size_t>(highest) + 1);
    if (lower > higher) std::swap(lower, higher);
    for (const std::uint32_t member : members_[higher]) labels_[member] = static_cast<std::int64_t>(lower);
    members_[lower].insert(members_[lower].end(), members_[higher].begin(), members_[higher].end());
    members_[higher].clear();
    --result.n_clusters;
  }
  for (const std::uint32_t place : blocked_) {
    const auto [i, j] = pairs_[place];
    rank(i, j) = rank(j, i) = place;
  }
  blocked_.clear();
  return result;
}

std::vector<std::size_t> StarProblem::component_ranks() const {
  std::vector<std::uint32_t> parent(static_cast<std::size_t>(size_));
  std::iota(parent.begin(), parent.end(), 0u);
  auto root = [&](std::uint32_t node) {
    while (parent[node] != node) node = parent[node] = parent[parent[node]];
    return node;
  };
  std::vector<std::size_t> ranks;
  for (std::size_t place = 0; place < pairs_.size() && ranks.size() + 1 < parent.size(); ++place) {
    const std::uint32_t a = root(pairs_[place].i);
    const std::uint32_t b = root(pairs_[place].j);
    if (a == b) continue;
    parent[a] = b;
    ranks.push_back(place);
  }
  return ranks;
}

namespace {

void check_labels(const char* operation, const Span<std::int64_t>& labels, std::int64_t n) {
  if (static_cast<std::int64_t>(labels.size()) != n) {
    fail(operation, "labels must hold one value for each of the ", n, " experts, got ", labels.size());
  }
}

}  // namespace
}  // namespace detail

std::int64_t star_clusters(ConstMatrixView distances, double threshold, std::int64_t min_clusters,
                           Span<std::int64_t> labels) {
  constexpr const char* kOperation = "star_clusters";
  detail::check_star_distances(kOperation, distances);
  const std::int64_t n = distances.rows;
  if (std::isnan(threshold)) detail::fail(kOperation, "threshold must not be NaN");
  if (min_clusters < 1 || min_clusters > n) {
    detail::fail(kOperation, "min_clusters must be in [1, ", n, "], got ", min_clusters);
  }
  detail::check_labels(kOperation, labels, n);
  detail::StarProblem problem(distances, 0, n, threshold);
  const detail::StarResult result = problem.run(problem.sorted().size(), min_clusters);
  std::copy(problem.labels().begin(), problem.labels().end(), labels.begin());
  return result.n_clusters;
}

double star_clusters_count(ConstMatrixView distances, std::int64_t n_clusters, Span<std::int64_t> labels) {
  constexpr const char* kOperation = "star_clusters_count";
  detail::check_star_distances(kOperation, distances);
  const std::int64_t n = distances.rows;
  if (n_clusters < 1 || n_clusters > n) {
    detail::fail(kOperation, "n_clusters must be in [1, ", n, "], got ", n_clusters);
  }
  detail::check_labels(kOperation, labels, n);
  if (n_clusters == n) {
    std::iota(labels.begin(), labels.end(), std::int64_t{0});
    return -std::numeric_limits<double>::infinity();
  }
  detail::StarProblem problem(distances, 0, n);
  const std::vector<double>& sorted = problem.sorted();
  const std::size_t all = sorted.size();

  // A number of pairs at which the rule ends at n_clusters: all of them, unless infinite distances stand in the way.
  std::size_t high = all;
  for (;;) {
    const detail::StarResult result = problem.run(high, n_clusters);
    if (result.n_clusters == n_clusters) break;
    if (result.valid_from == 0) {
      detail::fail(kOperation, "n_clusters must be reachable, but infinite distances leave more than ", n_clusters,
                   " clusters at any threshold");
    }
    high = problem.pairs_below(sorted[result.valid_from - 1]);  // the next lower threshold that changes anything
  }
  // Between a number of pairs that ends above n_clusters (none at all) and one that ends at it, bisect over the
  // thresholds, which are the starts of runs of equal distances.
  std::size_t low = 0;
  while (true) {
    std::size_t middle = problem.pairs_below(sorted[low + (high - low) / 2]);
    if (middle <= low) {  // the first threshold above the middle instead
      middle = static_cast<std::size_t>(std::upper_bound(sorted.begin(), sorted.end(), sorted[low]) - sorted.begin());
    }
    if (middle >= high) break;
    (problem.run(middle, n_clusters).n_clusters == n_clusters ? high : low) = middle;
  }
  problem.run(high, n_clusters);
  std::copy(problem.labels().begin(), problem.labels().end(), labels.begin());
  return high < all ? sorted[high] : std::numeric_limits<double>::infinity();
}

}  // namespace stun_ext
