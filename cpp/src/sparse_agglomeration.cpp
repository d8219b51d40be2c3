// SPDX-License-Identifier: Apache-2.0
#include "sparse_agglomeration.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "lance_williams.hpp"

namespace stun_ext::detail {
namespace {

// Bounds are made from rounded numbers: held this much (relatively) lower, they stay bounds.
constexpr double kLower = 1.0 - 1e-9;

// Clusters that may learn all their distances before a new pass is cheaper.
constexpr int kMostLearnt = 64;

}  // namespace

SparseAgglomeration::SparseAgglomeration(std::vector<NearPair> pairs, double limit,
                                         const std::vector<std::uint32_t>& ids, Linkage method, Forest& forest,
                                         ClusterDistance& distance, CentroidSums* sums)
    : method_(method),
      limit_(limit),
      forest_(forest),
      distance_(distance),
      sums_(sums),
      first_count_(static_cast<std::uint32_t>(ids.size())),
      id_(ids),
      first_edges_(pairs.size()),
      active_(static_cast<std::int64_t>(ids.size())) {
  const std::size_t places = 2 * ids.size() - 1;
  id_.reserve(places);
  size_.reserve(places);
  for (const std::uint32_t id : ids) size_.push_back(static_cast<double>(forest.size(id)));
  list_.resize(ids.size());
  list_.reserve(places);
  mark_.assign(places, kGone);
  std::vector<std::uint32_t> degree(ids.size(), 0);
  for (const NearPair& pair : pairs) {
    ++degree[pair.low];
    ++degree[pair.high];
  }
  for (std::size_t place = 0; place < ids.size(); ++place) list_[place].reserve(degree[place]);
  static_assert(sizeof(Edge) == sizeof(NearPair));
  edges_.reserve(pairs.size());
  for (const NearPair& pair : pairs) {
    list_[pair.low].push_back(static_cast<std::uint32_t>(edges_.size()));
    list_[pair.high].push_back(static_cast<std::uint32_t>(edges_.size()));
    edges_.push_back({pair.distance, pair.low, pair.high & 0x7fffffffu, pair.is_bound});
  }
  if (method == Linkage::centroid) {
    variance_.assign(ids.size(), 0.0);
    knows_all_.assign(ids.size(), 0);
  }
}

std::vector<std::uint32_t> SparseAgglomeration::remaining() const {
  std::vector<std::uint32_t> ids;
  for (std::size_t place = 0; place < id_.size(); ++place) {
    if (size_[place] > 0.0) ids.push_back(id_[place]);
  }
  return ids;
}

bool SparseAgglomeration::is_current(const Entry& entry) const noexcept {
  const Edge& edge = edges_[entry.edge];
  return edge.low == entry.low && edge.high == entry.high && edge.distance == entry.distance;
}

void SparseAgglomeration::push(const Entry& entry) {
  heap_.push_back(entry);
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

/// The nearest of the clusters older than `place`, of those that it has edges to.
void SparseAgglomeration::push_nearest(std::uint32_t place) {
  std::vector<std::uint32_t>& list = list_[place];
  Entry nearest = {0.0, kGone, place, 0};
  std::size_t kept = 0;
  for (const std::uint32_t index : list) {
    const Edge& edge = edges_[index];
    if (edge.low == kGone) continue;
    list[kept++] = index;
    if (edge.high != place) continue;  // belongs to a newer cluster
    const Entry entry = {edge.distance, edge.low, place, index};
    if (nearest.low == kGone || nearest > entry) nearest = entry;
  }
  list.resize(kept);
  if (nearest.low != kGone) push(nearest);
}

/// The lowest edge by (distance, lower id, higher id); it stays where it is.
bool SparseAgglomeration::next(Entry& entry) {
  while (next_edge_ < first_edges_) {
    const Edge& edge = edges_[next_edge_];
    if (edge.low != kGone && edge.high < first_count_) break;
    ++next_edge_;
  }
  while (!heap_.empty() && !is_current(heap_.front())) {
    const std::uint32_t place = heap_.front().high;
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    heap_.pop_back();
    if (place >= first_count_ && size_[place] > 0.0) push_nearest(place);
  }
  if (next_edge_ == first_edges_ && heap_.empty()) return false;
  if (next_edge_ < first_edges_) {
    const Edge& edge = edges_[next_edge_];
    entry = {edge.distance, edge.low, edge.high, static_cast<std::uint32_t>(next_edge_)};
    if (heap_.empty() || heap_.front() > entry) return true;
  }
  entry = heap_.front();
  return true;
}

bool SparseAgglomeration::run(Stop stop, Ticker& ticker) {
  const auto first_active = static_cast<double>(active_);
  std::uint32_t steps = 0;
  while (active_ > stop.n_clusters) {
    Entry entry;
    if (!next(entry) || entry.distance >= limit_) return false;
    if (method_ == Linkage::centroid && !knows_enough(entry.distance)) {
      if (learnt_++ == kMostLearnt) return false;
      continue;
    }
    if (entry.distance > stop.height) return true;
    if (++steps % 64 == 0) ticker.tick(1.0 - static_cast<double>(active_) / first_active);
    Edge& edge = edges_[entry.edge];
    if (edge.is_bound) {
      edge.distance = distance_(id_[edge.low], id_[edge.high]);
      edge.is_bound = 0;
      // Of a first cluster's edge the order in edges_ no longer holds; a newer one's nearest is looked for again.
      if (entry.high < first_count_) {
        if (next_edge_ < first_edges_ && entry.edge == next_edge_) ++next_edge_;
        push({edge.distance, entry.low, entry.high, entry.edge});
      }
      continue;
    }
    // Distances of large clusters may be rounded below the merges that made them.
    if (method_ != Linkage::centroid) last_height_ = std::max(last_height_, entry.distance);
    merge(entry.low, entry.high, method_ == Linkage::centroid ? entry.distance : last_height_);
  }
  return true;
}

/// What an unknown distance is at least.
double SparseAgglomeration::unknown_bound(std::uint32_t a, std::uint32_t b) const noexcept {
  if (method_ != Linkage::centroid) return limit_;
  return std::sqrt(std::max(limit_ * limit_ - variance_[a] - variance_[b], 0.0)) * kLower;
}

/// What becomes of an edge of x (or of y) to a third cluster when they merge into z; `with` is the other's edge to it.
/// Returns whether it is left.
bool SparseAgglomeration::take_over(std::uint32_t index, const std::uint32_t* with, std::uint32_t x, std::uint32_t y,
                                    std::uint32_t z, double height, bool from_x) {
  Edge& edge = edges_[index];
  const std::uint32_t own = from_x ? x : y;
  const std::uint32_t third = edge.low == own ? edge.high : edge.low;
  if (with == nullptr && method_ == Linkage::complete) {
    edge.low = kGone;
    return false;
  }
  const double other = with != nullptr ? edges_[*with].distance : unknown_bound(from_x ? y : x, third);
  const double d_x = from_x ? edge.distance : other;
  const double d_y = from_x ? other : edge.distance;
  double distance = lance_williams(method_, d_x, d_y, height, size_[x], size_[y], size_[third]);
  bool is_bound = edge.is_bound != 0 || with == nullptr || edges_[*with].is_bound != 0;
  if (method_ != Linkage::complete) {
    // Distances of large clusters are not made by the recurrence: see ClusterDistance.
    const double pairs = (size_[x] + size_[y]) * size_[third];
    is_bound = is_bound || pairs > static_cast<double>(ClusterDistance::recurrence_pairs(method_));
  }
  if (is_bound) {
    const double slack = 1e-11 * (d_x * d_x + d_y * d_y + height * height);
    distance = std::sqrt(std::max(distance * distance - slack, 0.0)) * kLower;
  }
  if (with != nullptr) edges_[*with].low = kGone;
  edge = {distance, third, z & 0x7fffffffu, is_bound};
  return true;
}

void SparseAgglomeration::merge(std::uint32_t x, std::uint32_t y, double height) {
  const auto z = static_cast<std::uint32_t>(id_.size());
  const std::uint32_t id_x = id_[x], id_y = id_[y];
  std::vector<std::uint32_t> list;
  std::vector<std::uint32_t> list_x = std::move(list_[x]), list_y = std::move(list_[y]);
  list_[x] = {};
  list_[y] = {};
  const auto third_of = [&](std::uint32_t index, std::uint32_t own) {
    return edges_[index].low == own ? static_cast<std::uint32_t>(edges_[index].high) : edges_[index].low;
  };
  for (const std::uint32_t index : list_x) {
    if (edges_[index].low == kGone) continue;
    const std::uint32_t third = third_of(index, x);
    if (third == y) {
      edges_[index].low = kGone;
    } else {
      mark_[third] = index;
    }
  }
  for (const std::uint32_t index : list_y) {
    if (edges_[index].low == kGone) continue;
    const std::uint32_t third = third_of(index, y);
    const std::uint32_t of_x = mark_[third];
    mark_[third] = kGone;
    if (take_over(index, of_x == kGone ? nullptr : &of_x, x, y, z, height, false)) list.push_back(index);
  }
  for (const std::uint32_t index : list_x) {
    if (edges_[index].low == kGone) continue;
    const std::uint32_t third = third_of(index, x);
    mark_[third] = kGone;
    if (take_over(index, nullptr, x, y, z, height, true)) list.push_back(index);
  }
  id_.push_back(forest_.merge(id_x, id_y, height));
  if (sums_ != nullptr) sums_->merged(id_x, id_y, id_.back());
  size_.push_back(size_[x] + size_[y]);
  if (method_ == Linkage::centroid) {
    const double size = size_[z];
    variance_.push_back((size_[x] * variance_[x] + size_[y] * variance_[y]) / size +
                        size_[x] * size_[y] * height * height / (size * size));
    knows_all_.push_back(knows_all_[x] != 0 || knows_all_[y] != 0);
    if (knows_all_[z] == 0) varied_.push_back(z);
  }
  size_[x] = size_[y] = 0.0;
  list_.push_back(std::move(list));
  --active_;
  push_nearest(z);
}

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
  if (learnt_ == kMostLearnt) return false;
  const std::uint32_t place = varied_[largest];
  varied_.erase(varied_.begin() + static_cast<std::ptrdiff_t>(largest));
  learn_all(place);
  return false;
}

/// Gives a cluster edges to all others: bounds, by the centroids.
void SparseAgglomeration::learn_all(std::uint32_t place) {
  const std::size_t cols = static_cast<std::size_t>(sums_->cols());
  centroids_.resize(2 * cols);
  sums_->centroid(id_[place], centroids_.data());
  std::vector<std::uint32_t>& list = list_[place];
  for (const std::uint32_t index : list) {
    const Edge& edge = edges_[index];
    if (edge.low != kGone) mark_[edge.low == place ? static_cast<std::uint32_t>(edge.high) : edge.low] = index;
  }
  const auto count = static_cast<std::uint32_t>(id_.size());
  for (std::uint32_t other = 0; other < count; ++other) {
    const bool is_known = mark_[other] != kGone;
    mark_[other] = kGone;
    if (is_known || other == place || size_[other] == 0.0) continue;
    const std::uint32_t low = std::min(place, other), high = std::max(place, other);
    const auto index = static_cast<std::uint32_t>(edges_.size());
    sums_->centroid(id_[other], centroids_.data() + cols);
    const double bound =
        distance_.from_centroids(centroids_.data(), size_[place], centroids_.data() + cols, size_[other]) * kLower;
    edges_.push_back({bound, low, high & 0x7fffffffu, 1});
    list_[place].push_back(index);
    list_[other].push_back(index);
    push({edges_[index].distance, low, high, index});
  }
  knows_all_[place] = 1;
}

}  // namespace stun_ext::detail
