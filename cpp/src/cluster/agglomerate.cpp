// SPDX-License-Identifier: Apache-2.0
#include "cluster/agglomerate.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "kernels/linkage.hpp"

namespace stun_ext::detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

LinkageKernels::Update update_of(const LinkageKernels& kernels, Linkage method) noexcept {
  switch (method) {
    case Linkage::single:
      return kernels.single;
    case Linkage::complete:
      return kernels.complete;
    case Linkage::average:
      return kernels.average;
    case Linkage::ward:
      return kernels.ward;
    case Linkage::centroid:
      break;
  }
  return kernels.centroid;
}

/// Greedy agglomeration, after the generic algorithm of Müllner (arXiv 1109.2378), arranged for SciPy's numbering:
/// slots are in the order of the cluster ids, a new cluster takes a new slot at the end, and a pair belongs to its
/// higher slot. A cluster keeps its nearest lower slot; when that one is merged away its distance stays a lower bound,
/// and the row is searched again only if the bound becomes the minimum.
///
/// A row holds the distances to the slots on both sides, so that a merge reads two rows and writes one, all contiguous.
/// The distances to new clusters, which are columns of the other rows, are written to these when they fill a cache
/// line; until then they are in the rows of the new clusters alone. When the slots are used up, those that are gone are
/// squeezed out. O(n²) memory, and O(n²) time but for searches.
class Agglomeration {
 public:
  Agglomeration(ClusterDistances& distances, const Clusters& clusters, Linkage method, Executor& executor)
      : kernels_(STUN_EXT_KERNELS(linkage)),
        update_(update_of(kernels_, method)),
        executor_(executor),
        capacity_(distances.capacity()),
        slots_(distances.clusters()),
        mirrored_(slots_),
        active_(slots_),
        next_id_(clusters.next_id),
        row_(static_cast<std::size_t>(capacity_)),
        id_(clusters.id),
        size_(clusters.size),
        penalty_(static_cast<std::size_t>(capacity_), kInfinity),
        bound_(static_cast<std::size_t>(capacity_), kInfinity),
        nearest_(static_cast<std::size_t>(capacity_), 0),
        is_stale_(static_cast<std::size_t>(capacity_), 0) {
    id_.resize(static_cast<std::size_t>(capacity_));
    size_.resize(static_cast<std::size_t>(capacity_));
    for (std::int64_t slot = 0; slot < slots_; ++slot) at(row_, slot) = distances.row(slot);
    std::fill_n(penalty_.begin(), slots_, 0.0);
    parallel([this](std::int64_t slot) noexcept { search(slot); });
  }

  std::vector<Merge> run(Stop stop, Ticker& ticker) {
    const auto count = static_cast<double>(active_);
    std::vector<Merge> merges;
    merges.reserve(static_cast<std::size_t>(std::max<std::int64_t>(active_ - stop.n_clusters, 0)));
    while (active_ > stop.n_clusters) {
      const std::int64_t y = closest();
      const std::int64_t x = at(nearest_, y);
      const double height = at(bound_, y);
      if (height > stop.height) break;
      merges.push_back(
          {static_cast<double>(at(id_, x)), static_cast<double>(at(id_, y)), height, at(size_, x) + at(size_, y)});
      merge(x, y, height);
      const double left = static_cast<double>(active_) / count;
      ticker.tick(1.0 - left * left);
    }
    return merges;
  }

 private:
  template <class T>
  static T& at(std::vector<T>& values, std::int64_t slot) noexcept {
    return values[static_cast<std::size_t>(slot)];
  }

  template <class EachSlot>
  void parallel(const EachSlot& each) {
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t slot = begin; slot < end; ++slot) each(slot);
    };
    executor_.parallel_for(slots_, slots_ < kParallelFrom ? slots_ : slots_ / (8 * executor_.concurrency()), task);
  }

  void set_nearest(std::int64_t slot, Minimum found) noexcept {
    at(bound_, slot) = found.value;
    at(nearest_, slot) = found.place;
    at(is_stale_, slot) = 0;
  }

  void search(std::int64_t slot) noexcept {
    set_nearest(slot, kernels_.lowest_of_row(at(row_, slot), penalty_.data(), slot));
  }

  /// Finds the nearest of a row again if that is gone. Its bound still holds, and was reached by nothing before
  /// nearest_ that is still there: so ties cost one walk along the row in all.
  void refresh(std::int64_t slot) noexcept {
    if (at(is_stale_, slot) == 0 && at(penalty_, at(nearest_, slot)) == 0.0) return;
    const double* row = at(row_, slot);
    const double bound = at(bound_, slot);
    for (std::int64_t k = at(nearest_, slot); k < slot; ++k) {
      k = kernels_.find(row, k, slot, bound);
      if (k < slot && at(penalty_, k) == 0.0) return set_nearest(slot, {bound, k});
    }
    search(slot);
  }

  /// The slot that owns the next pair: by distance, lower id, higher id.
  std::int64_t closest() noexcept {
    for (;;) {
      const Minimum minimum = kernels_.lowest(bound_.data(), slots_);
      std::int64_t best = slots_;
      for (std::int64_t slot = minimum.place; slot < slots_;
           slot = kernels_.find(bound_.data(), slot + 1, slots_, minimum.value)) {
        // Stale or not: the nearest can only move further up.
        if (best < slots_ && at(nearest_, slot) >= at(nearest_, best)) continue;
        refresh(slot);
        if (at(bound_, slot) != minimum.value) continue;
        if (best == slots_ || at(nearest_, slot) < at(nearest_, best)) best = slot;
      }
      if (best < slots_) return best;
    }
  }

  void merge(std::int64_t x, std::int64_t y, double height) {
    for (const std::int64_t gone : {x, y}) at(penalty_, gone) = at(bound_, gone) = kInfinity;
    active_ -= 2;
    if (slots_ == capacity_) squeeze(x, y);
    complete_row(x);
    complete_row(y);
    const std::int64_t z = slots_;
    MergedRow merged;
    merged.d_xi = at(row_, x);
    merged.d_yi = at(row_, y);
    merged.size_i = size_.data();
    merged.penalty = penalty_.data();
    merged.count = (z + kMirrored - 1) / kMirrored * kMirrored;  // slots to come have a penalty, too
    merged.d_xy = height;
    merged.size_x = at(size_, x);
    merged.size_y = at(size_, y);
    merged.out = at(row_, x);
    set_nearest(z, update_(merged));
    at(row_, z) = at(row_, x);
    at(row_, x) = at(row_, y);  // where columns of both are written to, and never read
    at(id_, z) = next_id_++;
    at(size_, z) = merged.size_x + merged.size_y;
    at(penalty_, z) = 0.0;
    ++slots_;
    ++active_;
    if (slots_ % kMirrored == 0) mirror_new();
  }

  /// Fills in a row's distances to clusters that have not been mirrored.
  void complete_row(std::int64_t slot) noexcept {
    double* row = at(row_, slot);
    for (std::int64_t k = std::max(mirrored_, slot + 1); k < slots_; ++k) row[k] = at(row_, k)[slot];
  }

  /// Writes the last rows as columns of the others. Slots below mirrored_ among them already are there: no matter.
  void mirror_new() noexcept {
    const std::int64_t begin = slots_ - kMirrored;
    const auto mirror = is_streamed(active_, slots_) ? kernels_.mirror_streaming : kernels_.mirror;
    mirror(row_.data() + begin, 0, begin, begin, row_.data());
    for (std::int64_t i = begin; i < slots_; ++i) complete_row(i);
    mirrored_ = slots_;
  }

  /// Moves the remaining slots, and x and y that are about to be merged, to the front.
  void squeeze(std::int64_t& x, std::int64_t& y) {
    const std::int64_t before = slots_;
    std::vector<std::uint8_t> is_kept(static_cast<std::size_t>(before / 8));  // bits
    std::vector<std::int64_t> new_slot(static_cast<std::size_t>(before));
    slots_ = 0;
    for (std::int64_t from = 0; from < before; ++from) {
      at(new_slot, from) = slots_;
      if (at(penalty_, from) != 0.0 && from != x && from != y) continue;
      at(is_kept, from / 8) |= static_cast<std::uint8_t>(1u << (from % 8));
      const std::int64_t to = slots_++;
      const std::int64_t nearest = at(nearest_, from);
      at(is_stale_, to) = static_cast<char>(at(is_stale_, from) != 0 || at(penalty_, nearest) != 0.0);
      at(nearest_, to) = at(new_slot, nearest);  // if stale: the next slot that remains
      at(row_, to) = at(row_, from);
      at(id_, to) = at(id_, from);
      at(size_, to) = at(size_, from);
      at(bound_, to) = at(bound_, from);
    }
    x = at(new_slot, x);
    y = at(new_slot, y);
    std::fill(penalty_.begin(), penalty_.begin() + slots_, 0.0);
    std::fill(penalty_.begin() + slots_, penalty_.begin() + before, kInfinity);
    std::fill(bound_.begin() + slots_, bound_.begin() + before, kInfinity);
    at(penalty_, x) = at(penalty_, y) = kInfinity;
    parallel([&](std::int64_t slot) noexcept { kernels_.squeeze(at(row_, slot), is_kept.data(), before); });
    mirrored_ = slots_;
    // The next time when two fifths of the slots are gone: until then, passing over them costs less than moving.
    capacity_ =
        std::min(capacity_, (slots_ + std::max<std::int64_t>(slots_ / 4, 16) + kMirrored) / kMirrored * kMirrored);
  }

  const LinkageKernels& kernels_;
  const LinkageKernels::Update update_;
  Executor& executor_;
  std::int64_t capacity_;  ///< slots before the next squeeze; a multiple of kMirrored
  std::int64_t slots_;
  std::int64_t mirrored_;  ///< slots whose distances are in the rows of all others
  std::int64_t active_;
  std::int64_t next_id_;
  std::vector<double*> row_;           ///< of a slot; of one that is gone: a row that nobody reads
  std::vector<std::int64_t> id_;       ///< SciPy's number of the cluster in a slot
  std::vector<double> size_;           ///< observations in it
  std::vector<double> penalty_;        ///< 0 for a cluster, +Inf where it has been merged away or is yet to come
  std::vector<double> bound_;          ///< lower bound, or exact distance, to the nearest lower slot
  std::vector<std::int64_t> nearest_;  ///< that slot, the lowest among equals; where it was if it is gone
  std::vector<char> is_stale_;         ///< it was gone when the slots were last squeezed
};

}  // namespace

Clusters Clusters::singletons(std::int64_t n) {
  Clusters clusters;
  clusters.id.resize(static_cast<std::size_t>(n));
  std::iota(clusters.id.begin(), clusters.id.end(), std::int64_t{0});
  clusters.size.assign(static_cast<std::size_t>(n), 1.0);
  clusters.next_id = n;
  return clusters;
}

std::vector<Merge> agglomerate(ClusterDistances distances, const Clusters& clusters, Linkage method, Stop stop,
                               Executor& executor, Ticker& ticker) {
  distances.mirror(executor);
  std::vector<Merge> merges;
  if (method == Linkage::single && merge_by_spanning_tree(distances, clusters, stop, merges)) return merges;
  return Agglomeration(distances, clusters, method, executor).run(stop, ticker);
}

}  // namespace stun_ext::detail
