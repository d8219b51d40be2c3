// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cluster/forest.hpp"
#include "distance/distance.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Sums of the rows of clusters, in float64, in an order that their merges fix: S(x ∪ y) = S(x) + S(y). As many as the
/// memory allows are kept; the others are summed again from the rows.
class CentroidSums {
 public:
  /// @param memory  bytes for sums that are kept.
  CentroidSums(const ConstMatrixView& rows, const Forest& forest, double memory);

  /// Tells that the forest has just merged `first` and `second` into `id`.
  void merged(std::uint32_t first, std::uint32_t second, std::uint32_t id);

  std::int64_t cols() const noexcept { return rows_.cols; }

  /// Writes the centroid, [d]. From several threads, but not while merged() runs.
  void centroid(std::uint32_t id, double* out) const;

 private:
  static constexpr std::uint32_t kNone = 0xffffffffu;
  void sum(std::uint32_t id, double* out) const;
  double* buffer(std::uint32_t place) noexcept { return kept_.data() + place * static_cast<std::size_t>(rows_.cols); }

  const ConstMatrixView& rows_;
  const Forest& forest_;
  std::vector<double> kept_;
  std::vector<std::uint32_t> free_;   ///< places in kept_
  std::vector<std::uint32_t> place_;  ///< by id; kNone: not kept
};

/// How a cluster came to be: its rows, and the merges among them.
class ClusterHistory {
 public:
  /// Of the cluster `id` of a forest.
  void read(const Forest& forest, std::uint32_t id);

  const std::vector<std::uint32_t>& rows() const noexcept { return rows_; }

  /// The distance that the recurrence gives two clusters: replays the merges inside a and inside b, in the order in
  /// which they happened, on the distances between their rows.
  /// @param distances  row i of a and j of b at [i · stride + j]; overwritten.
  static double replay(ClusterHistory& a, ClusterHistory& b, Linkage method, double* distances, std::size_t stride);

 private:
  struct Step {
    std::uint32_t id;    ///< of what was made: they count up in time
    std::uint32_t x, y;  ///< first rows of what was merged, as they count here
    double size_x, size_y, height;
  };
  void rewind();

  std::vector<std::uint32_t> rows_;
  std::vector<Step> steps_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> stack_;
  std::vector<std::uint32_t> active_;  ///< during a replay: first rows of the parts of that time, and their sizes
  std::vector<double> size_;
};

/// Complete linkage: clusters of up to so many pairs of rows come from a pass with a bound of their distance, and keep
/// it while they grow to so many, unless the distance is wanted before. Distances of larger ones are known: to compute
/// them from rows costs more than what they came from.
constexpr std::int64_t kLazyPairs = 4, kLazyPairsAtMost = 64;

/// Distances between clusters of a forest for any linkage but single, from their rows. One thread's.
///
/// Complete: the largest distance.
/// For small clusters the recurrence is followed through their merges: the very bits that an agglomeration with all
/// distances at hand has, so that ties stay ties. For large ones, where that would cost |A|·|B| distances and a tie is
/// no longer anything but rounding, it is the mean distance, or that of the centroids.
class ClusterDistance {
 public:
  /// @param sums  for Ward and centroid.
  ClusterDistance(const ConstMatrixView& rows, Linkage method, const Forest& forest, const CentroidSums* sums);

  /// Up to so many pairs of rows the recurrence is followed.
  static constexpr std::int64_t recurrence_pairs(Linkage method) noexcept {
    return method == Linkage::average ? 1 << 16 : 1 << 10;  // the mean costs as many distances, centroids do not
  }

  /// Bytes that its workspace grows to for clusters of n rows of d columns, what it takes for each row aside.
  static double bytes(std::int64_t n, std::int64_t d, Linkage method) noexcept;

  /// Distances between rows, or as much work, that operator() takes for clusters of so many rows.
  static double cost(Linkage method, double size_a, double size_b) noexcept {
    const double pairs = size_a * size_b;
    return method == Linkage::average || method == Linkage::complete ||
                   pairs <= static_cast<double>(recurrence_pairs(method))
               ? pairs
               : 1.0;
  }

  /// @param a, b  ids of two clusters that exist at the same time.
  double operator()(std::uint32_t a, std::uint32_t b);

  /// Distance by centroids alone, weighted for Ward: within 1e-9 (relative) of operator().
  double from_centroids(const double* a, double size_a, const double* b, double size_b) const noexcept;

 private:
  double by_recurrence(std::uint32_t a, std::uint32_t b);
  double largest(std::uint32_t a, std::uint32_t b);
  double mean(std::uint32_t a, std::uint32_t b);
  void collect(std::uint32_t id, std::vector<std::uint32_t>& members);

  const ConstMatrixView& rows_;
  Linkage method_;
  const Forest& forest_;
  const CentroidSums* sums_;
  SquaredDistanceBlock block_;
  std::vector<std::uint32_t> members_a_, members_b_;
  ClusterHistory history_a_, history_b_;
  std::vector<double> matrix_;
  std::vector<double> centroids_;  ///< [2, d]
};

}  // namespace stun_ext::detail
