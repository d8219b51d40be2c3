// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "agglomerate.hpp"
#include "check.hpp"
#include "lance_williams.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr std::int64_t capacity_for(std::int64_t slots) noexcept { return slots + slots / 4 + 2; }

/// Lowest value and the first place where it is.
struct Minimum {
  double value;
  std::int64_t place;
};

/// Minimum of row[k] + penalty[k]; the penalty is +Inf for slots that are gone. Eight lanes, so that it vectorises.
Minimum lowest(const double* row, const double* penalty, std::int64_t count) noexcept {
  constexpr int kWidth = 8;
  double lanes[kWidth];
  for (double& lane : lanes) lane = kInfinity;
  std::int64_t k = 0;
  for (; k + kWidth <= count; k += kWidth) {
    for (int w = 0; w < kWidth; ++w) {
      const double value = row[k + w] + penalty[k + w];
      lanes[w] = value < lanes[w] ? value : lanes[w];
    }
  }
  double value = kInfinity;
  for (const double lane : lanes) value = lane < value ? lane : value;
  for (; k < count; ++k) value = std::min(value, row[k] + penalty[k]);
  if (value == kInfinity) return {value, count};
  std::int64_t place = 0;
  while (row[place] + penalty[place] != value) ++place;
  return {value, place};
}

/// Greedy agglomeration, after the generic algorithm of Müllner (arXiv 1109.2378), arranged for SciPy's numbering:
/// slots are in the order of the cluster ids, a new cluster takes a new slot at the end, and a pair belongs to its
/// higher slot. A row then never changes once written. It keeps its nearest lower slot; when that one is merged
/// away its distance stays a lower bound, and the row is searched again only if the bound becomes the minimum.
/// When the slots are used up, those that are gone are squeezed out. O(n²) memory, and O(n²) time but for searches.
class Agglomeration {
 public:
  Agglomeration(ClusterDistances rows, const Clusters& clusters, Executor& executor)
      : rows_(std::move(rows)),
        slots_(static_cast<std::int64_t>(clusters.id.size())),
        active_(slots_),
        next_id_(clusters.next_id) {
    const std::int64_t n = slots_;
    capacity_ = capacity_for(n);
    const auto capacity = static_cast<std::size_t>(capacity_);
    id_ = clusters.id;
    id_.resize(capacity);
    size_ = clusters.size;
    size_.resize(capacity);
    penalty_.assign(capacity, 0.0);
    bound_.assign(capacity, kInfinity);
    nearest_.assign(capacity, 0);
    is_stale_.assign(capacity, 0);
    auto search = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t slot = begin; slot < end; ++slot) search_row(static_cast<std::size_t>(slot));
    };
    executor.parallel_for(n, std::max<std::int64_t>(64, n / (8 * executor.concurrency())), search);
  }

  std::vector<Merge> run(Linkage method, Stop stop) {
    std::vector<Merge> merges;
    merges.reserve(static_cast<std::size_t>(std::max<std::int64_t>(active_ - stop.n_clusters, 0)));
    while (active_ > stop.n_clusters) {
      const std::size_t y = closest_row();
      const std::size_t x = static_cast<std::size_t>(nearest_[y]);
      const double height = bound_[y];
      if (height > stop.height) break;
      merges.push_back({static_cast<double>(id_[x]), static_cast<double>(id_[y]), height, size_[x] + size_[y]});
      switch (method) {  // outside the loops over a row
        case Linkage::single:
          merge<Linkage::single>(x, y, height);
          break;
        case Linkage::complete:
          merge<Linkage::complete>(x, y, height);
          break;
        case Linkage::average:
          merge<Linkage::average>(x, y, height);
          break;
        case Linkage::ward:
          merge<Linkage::ward>(x, y, height);
          break;
        case Linkage::centroid:
          merge<Linkage::centroid>(x, y, height);
          break;
      }
    }
    return merges;
  }

 private:
  void search_row(std::size_t slot) noexcept {
    const Minimum found =
        lowest(rows_.row(static_cast<std::int64_t>(slot)), penalty_.data(), static_cast<std::int64_t>(slot));
    bound_[slot] = found.value;
    nearest_[slot] = found.place;
    is_stale_[slot] = 0;
  }

  /// Finds the nearest of a row again. Its bound still holds, and was reached by nothing before nearest_ that is
  /// still there: so ties cost one walk along the row in all.
  void refresh_row(std::size_t slot) noexcept {
    const double* row = rows_.row(static_cast<std::int64_t>(slot));
    const double bound = bound_[slot];
    for (std::size_t k = static_cast<std::size_t>(nearest_[slot]); k < slot; ++k) {
      if (row[k] + penalty_[k] == bound) {
        nearest_[slot] = static_cast<std::int64_t>(k);
        is_stale_[slot] = 0;
        return;
      }
    }
    search_row(slot);
  }

  /// The row that owns the next pair: by distance, lower id, higher id.
  std::size_t closest_row() noexcept {
    for (;;) {
      const Minimum minimum = lowest(bound_.data(), penalty_.data(), slots_);
      std::size_t best = 0;
      bool found = false;
      for (auto slot = static_cast<std::size_t>(minimum.place); slot < static_cast<std::size_t>(slots_); ++slot) {
        if (bound_[slot] != minimum.value || penalty_[slot] != 0.0) continue;
        if (found && nearest_[slot] >= nearest_[best]) continue;  // stale or not: it can only move further up
        if (is_stale_[slot]) refresh_row(slot);
        if (bound_[slot] == minimum.value && (!found || nearest_[slot] < nearest_[best])) {
          best = slot;
          found = true;
        }
      }
      if (found) return best;
    }
  }

  template <Linkage method>
  void merge(std::size_t x, std::size_t y, double height) {
    const double size_x = size_[x], size_y = size_[y];
    const auto update = [=](double d_xi, double d_yi, double size_i) noexcept {
      return lance_williams(method, d_xi, d_yi, height, size_x, size_y, size_i);
    };
    penalty_[x] = penalty_[y] = kInfinity;
    bound_[x] = bound_[y] = kInfinity;
    active_ -= 2;
    if (slots_ == capacity_) squeeze(x, y);
    const auto z = static_cast<std::size_t>(slots_);
    double* row = rows_.row(slots_);
    const double* row_x = rows_.row(static_cast<std::int64_t>(x));
    const double* row_y = rows_.row(static_cast<std::int64_t>(y));
    for (std::size_t i = 0; i < x; ++i) row[i] = update(row_x[i], row_y[i], size_[i]);
    row[x] = row[y] = 0.0;  // gone: behind their penalty
    for (std::size_t i = x + 1; i < z; ++i) {
      if (penalty_[i] != 0.0) {
        row[i] = 0.0;
        continue;
      }
      const double* row_i = rows_.row(static_cast<std::int64_t>(i));
      row[i] = update(row_i[x], i < y ? row_y[i] : row_i[y], size_[i]);
      const auto nearest = static_cast<std::size_t>(nearest_[i]);
      if (nearest == x || nearest == y) is_stale_[i] = 1;
    }
    id_[z] = next_id_++;
    size_[z] = size_[x] + size_[y];
    penalty_[z] = 0.0;
    ++slots_;
    ++active_;
    search_row(z);
  }

  /// Moves the remaining slots, and x and y that are about to be merged, to the front in place.
  void squeeze(std::size_t& x, std::size_t& y) {
    std::vector<std::int64_t> kept;
    kept.reserve(static_cast<std::size_t>(active_ + 2));
    std::vector<std::int64_t> new_slot(static_cast<std::size_t>(slots_));
    for (std::size_t slot = 0; slot < static_cast<std::size_t>(slots_); ++slot) {
      new_slot[slot] = static_cast<std::int64_t>(kept.size());
      if (penalty_[slot] == 0.0 || slot == x || slot == y) kept.push_back(static_cast<std::int64_t>(slot));
    }
    for (std::size_t to = 0; to < kept.size(); ++to) {
      const auto from = static_cast<std::size_t>(kept[to]);
      const double* source = rows_.row(kept[to]);
      double* target = rows_.row(static_cast<std::int64_t>(to));
      for (std::size_t k = 0; k < to; ++k) target[k] = source[kept[k]];
      id_[to] = id_[from];
      size_[to] = size_[from];
      penalty_[to] = penalty_[from];
      bound_[to] = bound_[from];
      is_stale_[to] = is_stale_[from];
      nearest_[to] = new_slot[static_cast<std::size_t>(nearest_[from])];  // if stale: the next slot that remains
    }
    x = static_cast<std::size_t>(new_slot[x]);
    y = static_cast<std::size_t>(new_slot[y]);
    slots_ = static_cast<std::int64_t>(kept.size());
    capacity_ = capacity_for(slots_);
  }

  ClusterDistances rows_;
  std::int64_t capacity_;  ///< slots in use before the next squeeze
  std::int64_t slots_;
  std::int64_t active_;
  std::int64_t next_id_;
  std::vector<std::int64_t> id_;       ///< SciPy's number of the cluster in a slot
  std::vector<double> size_;           ///< observations in it
  std::vector<double> penalty_;        ///< 0, or +Inf once it has been merged away
  std::vector<double> bound_;          ///< lower bound, or exact distance, to the nearest lower slot
  std::vector<std::int64_t> nearest_;  ///< that slot, the lowest among equals; if stale, where it was
  std::vector<char> is_stale_;
};

}  // namespace

double ClusterDistances::bytes(std::int64_t clusters) noexcept {
  const auto capacity = static_cast<double>(capacity_for(clusters));
  return 4.0 * capacity * (capacity - 1.0) + 64.0 * capacity;
}

ClusterDistances::ClusterDistances(std::int64_t clusters) : values_(size_of_rows(capacity_for(clusters))) {}

Clusters Clusters::singletons(std::int64_t n) {
  Clusters clusters;
  clusters.id.resize(static_cast<std::size_t>(n));
  std::iota(clusters.id.begin(), clusters.id.end(), std::int64_t{0});
  clusters.size.assign(static_cast<std::size_t>(n), 1.0);
  clusters.next_id = n;
  return clusters;
}

std::vector<Merge> agglomerate(ClusterDistances distances, Clusters clusters, Linkage method, Stop stop,
                               Executor& executor) {
  return Agglomeration(std::move(distances), clusters, executor).run(method, stop);
}

}  // namespace detail

namespace {

constexpr const char* kOperation = "linkage";

/// The n with n(n−1)/2 = size; 0 if there is none.
std::int64_t observations_of(std::size_t size) noexcept {
  auto n = static_cast<std::int64_t>(std::llround((1.0 + std::sqrt(1.0 + 8.0 * static_cast<double>(size))) / 2.0));
  return static_cast<std::size_t>(n * (n - 1) / 2) == size ? n : 0;
}

}  // namespace

void detail::check_method(Linkage method) {
  if (static_cast<unsigned>(method) > static_cast<unsigned>(Linkage::centroid)) {
    fail(kOperation, "method must be single, complete, average, ward or centroid, got ", static_cast<unsigned>(method));
  }
}

std::vector<Merge> linkage(Span<const double> condensed, Linkage method, Executor& executor) {
  detail::check_method(method);
  if (method == Linkage::ward || method == Linkage::centroid) {
    detail::fail(kOperation, "method ", method == Linkage::ward ? "ward" : "centroid",
                 " is defined on observations and needs rows, got condensed distances");
  }
  const std::int64_t n = observations_of(condensed.size());
  if (n == 0) {
    detail::fail(kOperation, "condensed distances must be n(n-1)/2 values for an n >= 1, got ", condensed.size());
  }
  const double* value = condensed.data();
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i + 1; j < n; ++j, ++value) {
      if (!std::isfinite(*value)) {
        detail::fail(kOperation, "distances must be finite, got ", *value, " for the pair (", i, ", ", j, ")");
      }
    }
  }
  detail::ClusterDistances rows(n);
  // From pairs by their lower observation to pairs by their higher one: a transposition, in squares that fit a cache.
  constexpr std::int64_t kSquare = 64;
  for (std::int64_t i0 = 0; i0 < n; i0 += kSquare) {
    for (std::int64_t j0 = i0; j0 < n; j0 += kSquare) {
      for (std::int64_t i = i0; i < std::min(n, i0 + kSquare); ++i) {
        const std::int64_t offset = i * (2 * n - i - 1) / 2 - i - 1;  // of the pair (i, j), less j
        for (std::int64_t j = std::max(j0, i + 1); j < std::min(n, j0 + kSquare); ++j) {
          rows.row(j)[i] = condensed[static_cast<std::size_t>(offset + j)];
        }
      }
    }
  }
  return detail::agglomerate(std::move(rows), detail::Clusters::singletons(n), method, {}, executor);
}

}  // namespace stun_ext
