// SPDX-License-Identifier: Apache-2.0
#include "low_memory/sparse_agglomeration.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "cluster/lance_williams.hpp"

namespace stun_ext::detail {
namespace {

// Bounds that are replaced together at most, how many of them of one cluster, and the work (columns of pairs of rows)
// from which on that is done by all threads.
constexpr std::size_t kBatch = 256;
constexpr std::size_t kBatchOfOne = 16;
constexpr double kWorthThreads = 1 << 18;

// Of all pairs of rows, the part whose distances may be computed to replace bounds: more would cost as much as a pass,
// which finds better bounds.
constexpr double kShareOfPairs = 1.0 / 32;

}  // namespace

SparseAgglomeration::SparseAgglomeration(std::vector<NearPair> pairs, double limit,
                                         const std::vector<std::uint32_t>& ids, const ConstMatrixView& rows,
                                         Linkage method, Forest& forest, CentroidSums* sums, std::size_t room,
                                         Executor& executor)
    : method_(method),
      limit_(limit),
      forest_(forest),
      sums_(sums),
      executor_(executor),
      cost_of_pair_(static_cast<double>(rows.cols)),
      first_count_(static_cast<std::uint32_t>(ids.size())),
      id_(ids),
      edges_(std::move(pairs)),
      first_edges_(edges_.size()),
      active_(static_cast<std::int64_t>(ids.size())),
      room_(room) {
  for (int k = 0; k < executor.concurrency(); ++k) distances_.emplace_back(rows, method, forest, sums);
  const std::size_t places = 2 * ids.size() - 1;
  id_.reserve(places);
  size_.reserve(places);
  list_.reserve(places);
  mark_.assign(places, kNone);
  for (const std::uint32_t id : ids) size_.push_back(static_cast<double>(forest.size(id)));
  segments_.assign(ids.size(), {0, 0, kNone});
  for (const NearPair& pair : edges_) {
    ++segments_[pair.low].size;
    ++segments_[pair.high].size;
  }
  std::size_t begin = 0;
  for (std::uint32_t place = 0; place < first_count_; ++place) {
    segments_[place].begin = begin;
    begin += segments_[place].size;
    segments_[place].size = 0;
    list_.push_back({place, place});
  }
  if (method == Linkage::centroid) {  // room to learn, one after the other: each is twice there while it grows
    edges_.reserve(room);
    listed_.reserve(2 * room);
  }
  listed_.resize(begin);
  for (std::size_t index = 0; index < edges_.size(); ++index) {
    for (const std::uint32_t place : {static_cast<std::uint32_t>(edges_[index].low), edges_[index].high}) {
      Segment& segment = segments_[place];
      listed_[segment.begin + segment.size++] = static_cast<std::uint32_t>(index);
    }
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

void SparseAgglomeration::append(List& list, List more) noexcept {
  if (more.first == kNone) return;
  (list.first == kNone ? list.first : segments_[list.last].next) = more.first;
  list.last = more.last;
}

bool SparseAgglomeration::is_current(const Entry& entry) const noexcept {
  const NearPair& edge = edges_[entry.edge];
  return edge.low == entry.low && edge.high == entry.high && edge.distance == entry.distance;
}

void SparseAgglomeration::push(const Entry& entry) {
  heap_.push_back(entry);
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

SparseAgglomeration::Entry SparseAgglomeration::pop() {
  const Entry top = heap_.front();
  std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
  heap_.pop_back();
  return top;
}

/// The nearest of the clusters older than `place`, of those that it has edges to.
void SparseAgglomeration::push_nearest(std::uint32_t place) {
  Entry nearest = {0.0, kNone, place, 0};
  filter(place, [&](std::uint32_t index) {
    const NearPair& edge = edges_[index];
    if (edge.high == place) {  // else it belongs to a newer cluster
      const Entry entry = entry_of(edge, index);
      if (nearest.low == kNone || nearest > entry) nearest = entry;
    }
    return true;
  });
  if (nearest.low != kNone) push(nearest);
}

/// The lowest edge by (distance, lower id, higher id); it stays where it is.
bool SparseAgglomeration::next(Entry& entry) {
  while (next_edge_ < first_edges_) {
    const NearPair& edge = edges_[next_edge_];
    if (edge.low != kGone && edge.high < first_count_) break;
    ++next_edge_;
  }
  while (!heap_.empty() && !is_current(heap_.front())) {
    const std::uint32_t place = pop().high;
    if (place >= first_count_ && size_[place] > 0.0) push_nearest(place);
  }
  if (next_edge_ == first_edges_ && heap_.empty()) return false;
  if (next_edge_ < first_edges_) {
    entry = entry_of(edges_[next_edge_], next_edge_);
    if (heap_.empty() || heap_.front() > entry) return true;
  }
  entry = heap_.front();
  return true;
}

SparseAgglomeration::End SparseAgglomeration::run(Stop stop, std::int64_t enough, Ticker& ticker) {
  const auto first_active = static_cast<double>(active_);
  const auto rows = static_cast<double>(forest_.num_rows());
  const double most_spent = kShareOfPairs * 0.5 * rows * rows;
  bool may_pause = false;  // not without a merge
  std::uint32_t steps = 0;
  while (active_ > stop.n_clusters) {
    Entry entry;
    if (active_ <= enough || (may_pause && spent_ > most_spent)) return End::early;
    if (!next(entry) || entry.distance >= limit_) return End::limit;
    if (method_ == Linkage::centroid && !knows_enough(entry.distance)) {
      if (learnt_++ == kMostLearnt) return End::early;
      continue;
    }
    if (entry.distance > stop.height) return End::stop;
    if (++steps % 64 == 0) ticker.tick(1.0 - static_cast<double>(active_) / first_active);
    if (edges_[entry.edge].is_bound) {
      resolve(entry);
      continue;
    }
    // Distances of large clusters may be rounded below the merges that made them.
    if (method_ != Linkage::centroid) last_height_ = std::max(last_height_, entry.distance);
    batch_size_ = 1;
    merge(entry.low, entry.high, method_ == Linkage::centroid ? entry.distance : last_height_);
    may_pause = true;
  }
  return End::stop;
}

/// Takes what next() has just told out of the order of edges.
void SparseAgglomeration::take_from_top(const Entry& entry) {
  if (next_edge_ < first_edges_ && entry.edge == next_edge_) {
    ++next_edge_;
  } else {
    pop();
  }
}

/// Appends to `batch_` the lowest bounds that a newer cluster has, the lowest of all (which is there) excepted.
void SparseAgglomeration::add_lowest_bounds(std::uint32_t place, std::size_t most) {
  const std::size_t begin = batch_.size();
  filter(place, [&](std::uint32_t index) {
    const NearPair& edge = edges_[index];
    if (edge.high == place && edge.is_bound != 0 && edge.distance < limit_ && index != batch_[begin - 1].edge) {
      batch_.push_back(entry_of(edge, index));
    }
    return true;
  });
  if (batch_.size() <= begin + most) return;
  const auto first = batch_.begin() + static_cast<std::ptrdiff_t>(begin);
  std::nth_element(first, first + static_cast<std::ptrdiff_t>(most), batch_.end(),
                   [](const Entry& a, const Entry& b) { return b > a; });
  batch_.resize(begin + most);
}

/// Replaces bounds at the top, `entry` the first of them, by distances. Several at once where many have been replaced
/// since the last merge: it is known then that bounds are far below distances. Which ones are replaced is not seen in
/// the merges, since a distance is the same whenever it is computed.
void SparseAgglomeration::resolve(Entry entry) {
  batch_.clear();
  tops_.clear();
  do {
    take_from_top(entry);
    batch_.push_back(entry);
    tops_.push_back(entry);
    if (entry.high >= first_count_ && batch_size_ > 1) {
      add_lowest_bounds(entry.high, std::min(kBatchOfOne, batch_size_) - 1);
    }
  } while (batch_.size() < batch_size_ && next(entry) && entry.distance < limit_ && edges_[entry.edge].is_bound != 0);
  batch_size_ = std::min(2 * batch_size_, kBatch);
  double work = 0.0;
  for (const Entry& of : batch_) work += ClusterDistance::cost(method_, size_[of.low], size_[of.high]);
  spent_ += work;
  const auto compute = [&](std::size_t k, ClusterDistance& distance) {
    NearPair& edge = edges_[batch_[k].edge];
    edge.distance = distance(id_[edge.low], id_[edge.high]);
    edge.is_bound = 0;
  };
  if (work * cost_of_pair_ > kWorthThreads && batch_.size() > 1) {
    std::atomic<std::size_t> taken{0};
    auto task = [&](std::int64_t begin, std::int64_t) {
      for (std::size_t k = taken++; k < batch_.size(); k = taken++) {
        compute(k, distances_[static_cast<std::size_t>(begin)]);
      }
    };
    executor_.parallel_for(static_cast<std::int64_t>(std::min(distances_.size(), batch_.size())), 1, task);
  } else {
    for (std::size_t k = 0; k < batch_.size(); ++k) compute(k, distances_[0]);
  }
  for (const Entry& top : tops_) {
    // A first cluster's edge has left the order of edges_; of a newer one the nearest is looked for again.
    if (top.high < first_count_) {
      push(entry_of(edges_[top.edge], top.edge));
    } else {
      push_nearest(top.high);
    }
  }
}

void SparseAgglomeration::make_exact(NearPair& edge) {
  if (edge.is_bound == 0) return;
  edge.distance = distances_[0](id_[edge.low], id_[edge.high]);
  edge.is_bound = 0;
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
  NearPair& edge = edges_[index];
  const std::uint32_t third = other_end(edge, from_x ? x : y);
  if (with == nullptr && method_ == Linkage::complete) {
    edge.low = kGone;
    return false;
  }
  if (method_ == Linkage::complete &&
      static_cast<std::int64_t>((size_[x] + size_[y]) * size_[third]) > kLazyPairsAtMost) {
    make_exact(edge);
    make_exact(edges_[*with]);
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
  if (is_bound && method_ != Linkage::complete) {
    const double slack = 1e-11 * (d_x * d_x + d_y * d_y + height * height);
    distance = std::sqrt(std::max(distance * distance - slack, 0.0)) * kLower;
  }
  if (with != nullptr) edges_[*with].low = kGone;
  edge = {distance, third & 0x7fffffffu, is_bound, z};
  return true;
}

void SparseAgglomeration::merge(std::uint32_t x, std::uint32_t y, double height) {
  const auto z = static_cast<std::uint32_t>(id_.size());
  const std::uint32_t id_x = id_[x], id_y = id_[y];
  filter(x, [&](std::uint32_t index) {
    const std::uint32_t third = other_end(edges_[index], x);
    if (third == y) {
      edges_[index].low = kGone;
      return false;
    }
    mark_[third] = index;
    return true;
  });
  filter(y, [&](std::uint32_t index) {
    const std::uint32_t third = other_end(edges_[index], y);
    const std::uint32_t of_x = mark_[third];
    mark_[third] = kNone;
    return take_over(index, of_x == kNone ? nullptr : &of_x, x, y, z, height, false);
  });
  filter(x, [&](std::uint32_t index) {
    mark_[other_end(edges_[index], x)] = kNone;
    return take_over(index, nullptr, x, y, z, height, true);
  });
  list_.push_back(list_[y]);
  append(list_[z], list_[x]);
  list_[x] = list_[y] = {kNone, kNone};
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
  --active_;
  push_nearest(z);
}

}  // namespace stun_ext::detail
