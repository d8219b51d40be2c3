// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "low_memory/sparse_agglomeration.hpp"

// Centroid linkage: what clusters learn, since distances may fall below those that are known.
namespace stun_ext::detail {

/// Centroid: whether no unknown pair can be as near as `distance`. If not, some cluster has learnt all its distances.
bool SparseAgglomeration::knows_enough(double distance) {
  double first = 0.0, second = 0.0;
  std::size_t largest = 0, kept = 0;
  for (std::size_t k = 0; k < varied_.size(); ++k) {
    const std::uint32_t place = varied_[k];
    if (size_[place] == 0.0) continue;
    varied_[kept] = place;
    if (variance_[place] > first) {
      second = first;
      first = variance_[place];
      largest = kept;
    } else if (variance_[place] > second) {
      second = variance_[place];
    }
    ++kept;
  }
  varied_.resize(kept);
  const double bound = limit_ * limit_ - first - second;
  if (kept == 0 || (bound > 0.0 && distance <= std::sqrt(bound) * kLower)) return true;
  const bool is_full = edges_.size() + static_cast<std::size_t>(active_) > room_;
  if (learnt_ == kMostLearnt || is_full) {
    learnt_ = kMostLearnt;
    return false;
  }
  const std::uint32_t place = varied_[largest];
  varied_.erase(varied_.begin() + static_cast<std::ptrdiff_t>(largest));
  learn_all(place);
  return false;
}

/// Gives a cluster edges to all others: bounds, by the centroids.
void SparseAgglomeration::learn_all(std::uint32_t place) {
  filter(place, [&](std::uint32_t index) {
    mark_[other_end(edges_[index], place)] = index;
    return true;
  });
  const std::size_t first = edges_.size();
  for (std::uint32_t other = 0; other < id_.size(); ++other) {
    const bool is_known = mark_[other] != kNone;
    mark_[other] = kNone;
    if (is_known || other == place || size_[other] == 0.0) continue;
    edges_.push_back({0.0, std::min(place, other) & 0x7fffffffu, 1, std::max(place, other)});
  }
  add_bounds(place, first);
  const auto add_segment = [&](std::uint32_t of, std::size_t begin) {
    segments_.push_back({begin, static_cast<std::uint32_t>(listed_.size() - begin), kNone});
    const auto segment = static_cast<std::uint32_t>(segments_.size() - 1);
    append(list_[of], {segment, segment});
  };
  for (std::size_t index = first; index < edges_.size(); ++index) {
    listed_.push_back(static_cast<std::uint32_t>(index));
    add_segment(other_end(edges_[index], place), listed_.size() - 1);
    push(entry_of(edges_[index], index));
  }
  const std::size_t begin = listed_.size();
  for (std::size_t index = first; index < edges_.size(); ++index) {
    listed_.push_back(static_cast<std::uint32_t>(index));
  }
  if (listed_.size() > begin) add_segment(place, begin);
  knows_all_[place] = 1;
  // Each takes a place in the heap and a segment, too.
  room_ -= std::min(room_, 3 * (edges_.size() - first));
}

/// The distances of a cluster's edges from the `first` on, by all threads.
void SparseAgglomeration::add_bounds(std::uint32_t place, std::size_t first) {
  const auto cols = static_cast<std::size_t>(sums_->cols());
  std::vector<double> own(cols);
  sums_->centroid(id_[place], own.data());
  auto task = [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> centroids(2 * cols);  // from_centroids() takes two rows of one matrix
    std::copy(own.begin(), own.end(), centroids.begin());
    for (std::size_t index = first + static_cast<std::size_t>(begin); index < first + static_cast<std::size_t>(end);
         ++index) {
      const std::uint32_t other = other_end(edges_[index], place);
      sums_->centroid(id_[other], centroids.data() + cols);
      edges_[index].distance =
          kLower * distances_[0].from_centroids(centroids.data(), size_[place], centroids.data() + cols, size_[other]);
    }
  };
  executor_.parallel_for(static_cast<std::int64_t>(edges_.size() - first), rows_per_task(sums_->cols()), task);
}

}  // namespace stun_ext::detail
