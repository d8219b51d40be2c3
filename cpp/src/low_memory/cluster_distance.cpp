// SPDX-License-Identifier: Apache-2.0
#include "low_memory/cluster_distance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cluster/lance_williams.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kMeanRows = 64;  // of each cluster at a time, for the mean of all their distances

}  // namespace

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

// Complete linkage looks at few pairs at a time: see kLazyPairsAtMost.
double ClusterDistance::bytes(std::int64_t n, std::int64_t d, Linkage method) noexcept {
  if (method == Linkage::single || method == Linkage::complete) return 8.0 * static_cast<double>(kLazyPairsAtMost);
  const double half = 0.5 * static_cast<double>(n);
  const double pairs = std::min(half * half, static_cast<double>(recurrence_pairs(method)));
  const double centroids = method == Linkage::average ? 0.0 : 16.0 * static_cast<double>(d);
  return 8.0 * std::max(pairs, static_cast<double>(kMeanRows * kMeanRows)) + centroids +
         SquaredDistanceBlock::bytes(d, 2 * kMeanRows);
}

double ClusterDistance::operator()(std::uint32_t a, std::uint32_t b) {
  if (forest_.is_row(a) && forest_.is_row(b)) return std::sqrt(squared_distance(rows_, a, b));
  if (method_ == Linkage::complete) return largest(a, b);
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

double ClusterDistance::largest(std::uint32_t a, std::uint32_t b) {
  collect(a, members_a_);
  collect(b, members_b_);
  const std::size_t pairs = members_a_.size() * members_b_.size();
  matrix_.resize(std::max(matrix_.size(), pairs));
  block_.compute(rows_, members_a_.data(), static_cast<std::int64_t>(members_a_.size()), members_b_.data(),
                 static_cast<std::int64_t>(members_b_.size()), matrix_.data());
  return std::sqrt(*std::max_element(matrix_.begin(), matrix_.begin() + static_cast<std::ptrdiff_t>(pairs)));
}

double ClusterDistance::mean(std::uint32_t a, std::uint32_t b) {
  collect(a, members_a_);
  collect(b, members_b_);
  constexpr auto kRows = static_cast<std::size_t>(kMeanRows);
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

double ClusterDistance::by_recurrence(std::uint32_t a, std::uint32_t b) {
  history_a_.read(forest_, a);
  history_b_.read(forest_, b);
  const std::vector<std::uint32_t>&of_a = history_a_.rows(), &of_b = history_b_.rows();
  const std::size_t pairs = of_a.size() * of_b.size();
  matrix_.resize(std::max(matrix_.size(), pairs));
  block_.compute(rows_, of_a.data(), static_cast<std::int64_t>(of_a.size()), of_b.data(),
                 static_cast<std::int64_t>(of_b.size()), matrix_.data());
  for (std::size_t k = 0; k < pairs; ++k) matrix_[k] = std::sqrt(matrix_[k]);
  return ClusterHistory::replay(history_a_, history_b_, method_, matrix_.data(), of_b.size());
}

void ClusterHistory::read(const Forest& forest, std::uint32_t id) {
  rows_.clear();
  steps_.clear();
  forest.for_each_row(id, [&](std::uint32_t row) { rows_.push_back(row); });
  // The rows of a cluster are those of the first it was made of, and then those of the second.
  stack_.assign(1, {id, 0u});
  while (!stack_.empty()) {
    const auto [made, begin] = stack_.back();
    stack_.pop_back();
    if (forest.is_row(made)) continue;
    const Merge& merge = forest.merge_of(made);
    const auto first = static_cast<std::uint32_t>(merge.first), second = static_cast<std::uint32_t>(merge.second);
    const auto size = static_cast<std::uint32_t>(forest.size(first));
    steps_.push_back(
        {made, begin, begin + size, static_cast<double>(size), static_cast<double>(forest.size(second)), merge.height});
    stack_.emplace_back(first, begin);
    stack_.emplace_back(second, begin + size);
  }
  std::sort(steps_.begin(), steps_.end(), [](const Step& s, const Step& t) { return s.id < t.id; });
}

void ClusterHistory::rewind() {
  size_.assign(rows_.size(), 1.0);
  active_.resize(rows_.size());
  std::iota(active_.begin(), active_.end(), 0u);
}

// When x and y became z, the recurrence was applied to the distances of each part of the other cluster of that time.
double ClusterHistory::replay(ClusterHistory& a, ClusterHistory& b, Linkage method, double* distances,
                              std::size_t stride) {
  a.rewind();
  b.rewind();
  std::size_t next_a = 0, next_b = 0;
  while (next_a < a.steps_.size() || next_b < b.steps_.size()) {
    const bool in_a =
        next_b == b.steps_.size() || (next_a < a.steps_.size() && a.steps_[next_a].id < b.steps_[next_b].id);
    const Step& step = in_a ? a.steps_[next_a++] : b.steps_[next_b++];
    ClusterHistory& own = in_a ? a : b;
    const ClusterHistory& other = in_a ? b : a;
    const std::size_t step_own = in_a ? stride : 1, step_other = in_a ? 1 : stride;
    for (const std::uint32_t i : other.active_) {
      double& d_xi = distances[step.x * step_own + i * step_other];
      const double d_yi = distances[step.y * step_own + i * step_other];
      d_xi = lance_williams(method, d_xi, d_yi, step.height, step.size_x, step.size_y, other.size_[i]);
    }
    own.size_[step.x] += own.size_[step.y];
    own.active_.erase(std::lower_bound(own.active_.begin(), own.active_.end(), step.y));
  }
  return distances[0];
}

}  // namespace stun_ext::detail
