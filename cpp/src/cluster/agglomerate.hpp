// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cluster/ticker.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// Fewer clusters are copied, mirrored, searched or squeezed before a thread has started.
constexpr std::int64_t kParallelFrom = 2048;

constexpr std::int64_t kStreamedFrom = std::int64_t{1} << 23;

/// Whether columns of so many distances are written past the caches: they would drive out more than they keep.
constexpr bool is_streamed(std::int64_t rows, std::int64_t columns) noexcept { return rows * columns >= kStreamedFrom; }

/// Distances of all pairs of m clusters as a square of rows that lie apart, with room for the columns of clusters that
/// will be made of them. The memory is not initialized: untouched pages cost nothing.
class ClusterDistances {
 public:
  /// Bytes that `clusters` take, workspaces of agglomerate() included.
  static double bytes(std::int64_t clusters) noexcept;

  explicit ClusterDistances(std::int64_t clusters);

  std::int64_t clusters() const noexcept { return clusters_; }
  /// Columns of a row, a multiple of kMirrored.
  std::int64_t capacity() const noexcept { return capacity_; }

  /// For i < j; from several threads for different pairs.
  void set(std::int64_t i, std::int64_t j, double distance) noexcept { row(i)[j] = distance; }

  /// A row, aligned to a cache line.
  double* row(std::int64_t i) noexcept { return values_.get() + i * capacity_; }

  /// Copies what is above the diagonal below it.
  void mirror(Executor& executor);

 private:
  struct Free {
    std::align_val_t alignment;
    void operator()(double* values) const noexcept;
  };

  std::int64_t clusters_;
  std::int64_t capacity_;
  std::unique_ptr<double[], Free> values_;
};

/// The clusters that an agglomeration starts from.
struct Clusters {
  std::vector<std::int64_t> id;  ///< SciPy's numbers, ascending
  std::vector<double> size;      ///< observations in each
  std::int64_t next_id;          ///< of the first cluster that will be made

  /// n observations, each on its own.
  static Clusters singletons(std::int64_t n);
};

/// Where an agglomeration ends: at the first of both.
struct Stop {
  std::int64_t n_clusters = 1;                              ///< clusters left
  double height = std::numeric_limits<double>::infinity();  ///< no merge above it
};

/// Distances beyond this are refused for Ward and centroid, which square them.
constexpr double highest_distance(Linkage method) noexcept {
  return method == Linkage::ward || method == Linkage::centroid ? 1e150 : std::numeric_limits<double>::max();
}

/// Refuses a value outside the enum.
void check_method(Linkage method);

/// Merges the closest pair, by (distance, lower id, higher id), until `stop`. See linkage().
/// @param distances  set for all pairs, finite, in the order of `clusters`.
/// @param ticker     told after each merge, but for single linkage by a tree.
std::vector<Merge> agglomerate(ClusterDistances distances, const Clusters& clusters, Linkage method, Stop stop,
                               Executor& executor, Ticker& ticker);

/// Single linkage by a minimum spanning tree. Two merges at one height need the order of agglomerate(): then nothing is
/// merged, and the answer is false.
/// @param distances  mirrored.
bool merge_by_spanning_tree(ClusterDistances& distances, const Clusters& clusters, Stop stop,
                            std::vector<Merge>& merges);

}  // namespace stun_ext::detail
