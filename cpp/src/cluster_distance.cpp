// SPDX-License-Identifier: Apache-2.0
#include "cluster_distance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lance_williams.hpp"
#include "load.hpp"

namespace stun_ext::detail {

CentroidSums::CentroidSums(const ConstMatrixView& rows, const Forest& forest, double memory)
    : rows_(rows), forest_(forest), place_(static_cast<std::size_t>(2 * rows.rows - 1), kNone) {
  const double bytes = 8.0 * static_cast<double>(rows.cols);
  const auto buffers =
      static_cast<std::size_t>(std::min(std::max(memory, 0.0) / bytes, static_cast<double>(rows.rows) / 2.0 + 1.0));
  kept_.resize(buffers * static_cast<std::size_t>(rows.cols));
  free_.resize(buffers);
  std::iota(free_.rbegin(), free_.rend(), 0u);
}

void CentroidSums::merged(std::uint32_t first, std::uint32_t second, std::uint32_t id) {
  if (place_[first] == kNone) std::swap(first, second);
  if (place_[first] == kNone) {
    if (free_.empty()) return;
    const std::uint32_t place = free_.back();
    free_.pop_back();
    sum(first, buffer(place));
    place_[first] = place;
  }
  double* total = buffer(place_[first]);
  std::vector<double> scratch;
  const double* other;
  if (place_[second] != kNone) {
    other = buffer(place_[second]);
    free_.push_back(place_[second]);
    place_[second] = kNone;
  } else {
    scratch.resize(static_cast<std::size_t>(rows_.cols));
    sum(second, scratch.data());
    other = scratch.data();
  }
  for (std::int64_t c = 0; c < rows_.cols; ++c) total[c] += other[c];
  place_[id] = place_[first];
  place_[first] = kNone;
}

// Down the larger children to one that is kept, or to a row, and up again adding the smaller ones: these are at most
// half as large, so that the recursion is log2(n) deep. Addition commutes, so the order is that of S(x) + S(y).
void CentroidSums::sum(std::uint32_t id, double* out) const {
  std::vector<std::uint32_t> smaller;
  while (place_[id] == kNone && !forest_.is_row(id)) {
    const Merge& merge = forest_.merge_of(id);
    auto large = static_cast<std::uint32_t>(merge.first), small = static_cast<std::uint32_t>(merge.second);
    if (forest_.size(large) < forest_.size(small)) std::swap(large, small);
    smaller.push_back(small);
    id = large;
  }
  if (place_[id] != kNone) {
    std::copy_n(kept_.data() + place_[id] * static_cast<std::size_t>(rows_.cols), rows_.cols, out);
  } else {
    load_block(rows_, id, 1, 0, rows_.cols, out, rows_.cols);
  }
  std::vector<double> scratch(smaller.empty() ? 0 : static_cast<std::size_t>(rows_.cols));
  for (auto child = smaller.rbegin(); child != smaller.rend(); ++child) {
    sum(*child, scratch.data());
    for (std::int64_t c = 0; c < rows_.cols; ++c) out[c] += scratch[static_cast<std::size_t>(c)];
  }
}

void CentroidSums::centroid(std::uint32_t id, double* out) const {
  sum(id, out);
  const auto size = static_cast<double>(forest_.size(id));
  if (size == 1.0) return;
  for (std::int64_t c = 0; c < rows_.cols; ++c) out[c] /= size;
}

ClusterDistance::ClusterDistance(const ConstMatrixView& rows, Linkage method, const Forest& forest,
                                 const CentroidSums* sums)
    : rows_(rows), method_(method), forest_(forest), sums_(sums), block_(rows.cols) {
  if (sums != nullptr) centroids_.resize(static_cast<std::size_t>(2 * rows.cols));
}

double ClusterDistance::operator()(std::uint32_t a, std::uint32_t b) {
  if (forest_.is_row(a) && forest_.is_row(b)) return std::sqrt(squared_distance(rows_, a, b));
  const std::int64_t pairs = forest_.size(a) * forest_.size(b);
  if (pairs <= recurrence_pairs(method_)) return by_recurrence(a, b);
  if (method_ == Linkage::average) return mean(a, b);
  double* of_b = centroids_.data() + rows_.cols;
  sums_->centroid(a, centroids_.data());
  sums_->centroid(b, of_b);
  return from_centroids(centroids_.data(), static_cast<double>(forest_.size(a)), of_b,
                        static_cast<double>(forest_.size(b)));
}

double ClusterDistance::from_centroids(const double* a, double size_a, const double* b, double size_b) const noexcept {
  // The kernel takes two rows of one matrix, any distance apart.
  const ConstMatrixView pair = {a, 2, rows_.cols, b - a, 1, DType::f64};
  const double squared = squared_distance(pair, 0, 1);
  return std::sqrt(method_ == Linkage::ward ? squared * (2.0 * size_a * size_b / (size_a + size_b)) : squared);
}

void ClusterDistance::collect(std::uint32_t id, std::vector<std::uint32_t>& members) {
  members.clear();
  forest_.for_each_row(id, [&](std::uint32_t row) { members.push_back(row); });
}

double ClusterDistance::mean(std::uint32_t a, std::uint32_t b) {
  collect(a, members_a_);
  collect(b, members_b_);
  constexpr std::size_t kRows = 64;
  matrix_.resize(std::max(matrix_.size(), kRows * kRows));
  double total = 0.0;
  for (std::size_t i = 0; i < members_a_.size(); i += kRows) {
    const std::size_t na = std::min(kRows, members_a_.size() - i);
    for (std::size_t j = 0; j < members_b_.size(); j += kRows) {
      const std::size_t nb = std::min(kRows, members_b_.size() - j);
      block_.compute(rows_, members_a_.data() + i, static_cast<std::int64_t>(na), members_b_.data() + j,
                     static_cast<std::int64_t>(nb), matrix_.data());
      double sum = 0.0;
      for (std::size_t k = 0; k < na * nb; ++k) sum += std::sqrt(matrix_[k]);
      total += sum;
    }
  }
  return total / (static_cast<double>(members_a_.size()) * static_cast<double>(members_b_.size()));
}

// Replays the merges inside A and inside B in the order in which they happened, on the |A|×|B| distances between rows:
// when x and y became z, the recurrence was applied to the distances of each part of the other cluster of that time.
double ClusterDistance::by_recurrence(std::uint32_t a, std::uint32_t b) {
  place_.resize(static_cast<std::size_t>(rows_.rows));
  const auto prepare = [&](std::uint32_t root, std::vector<std::uint32_t>& members, std::vector<std::uint32_t>& merges,
                           std::vector<double>& size, std::vector<std::uint32_t>& active) {
    collect(root, members);
    for (std::size_t k = 0; k < members.size(); ++k) place_[members[k]] = static_cast<std::uint32_t>(k);
    size.assign(members.size(), 1.0);
    active.resize(members.size());
    std::iota(active.begin(), active.end(), 0u);
    merges.clear();
    stack_.assign(1, root);
    while (!stack_.empty()) {
      const std::uint32_t id = stack_.back();
      stack_.pop_back();
      if (forest_.is_row(id)) continue;
      merges.push_back(id);
      stack_.push_back(static_cast<std::uint32_t>(forest_.merge_of(id).first));
      stack_.push_back(static_cast<std::uint32_t>(forest_.merge_of(id).second));
    }
    std::sort(merges.begin(), merges.end());
  };
  prepare(a, members_a_, merges_a_, size_a_, active_a_);
  prepare(b, members_b_, merges_b_, size_b_, active_b_);
  const std::size_t cols = members_b_.size();
  matrix_.resize(std::max(matrix_.size(), members_a_.size() * cols));
  block_.compute(rows_, members_a_.data(), static_cast<std::int64_t>(members_a_.size()), members_b_.data(),
                 static_cast<std::int64_t>(cols), matrix_.data());
  for (std::size_t k = 0; k < members_a_.size() * cols; ++k) matrix_[k] = std::sqrt(matrix_[k]);

  const auto at = [&](std::uint32_t i, std::uint32_t j) -> double& { return matrix_[i * cols + j]; };
  std::size_t next_a = 0, next_b = 0;
  while (next_a < merges_a_.size() || next_b < merges_b_.size()) {
    const bool in_a =
        next_b == merges_b_.size() || (next_a < merges_a_.size() && merges_a_[next_a] < merges_b_[next_b]);
    const Merge& merge = forest_.merge_of(in_a ? merges_a_[next_a++] : merges_b_[next_b++]);
    // A cluster's distances are kept at its first row's place.
    const std::uint32_t x = place_[forest_.first_row(static_cast<std::uint32_t>(merge.first))];
    const std::uint32_t y = place_[forest_.first_row(static_cast<std::uint32_t>(merge.second))];
    std::vector<double>& own = in_a ? size_a_ : size_b_;
    const std::vector<double>& other = in_a ? size_b_ : size_a_;
    std::vector<std::uint32_t>& active = in_a ? active_a_ : active_b_;
    for (const std::uint32_t i : in_a ? active_b_ : active_a_) {
      double& d_xi = in_a ? at(x, i) : at(i, x);
      const double d_yi = in_a ? at(y, i) : at(i, y);
      d_xi = lance_williams(method_, d_xi, d_yi, merge.height, own[x], own[y], other[i]);
    }
    own[x] += own[y];
    active.erase(std::lower_bound(active.begin(), active.end(), y));
  }
  return at(0, 0);
}

}  // namespace stun_ext::detail
