// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "stun_ext/cluster.hpp"
#include "stun_ext/executor.hpp"

namespace stun_ext::detail {

/// Room for the distances of all pairs of m clusters and of those that will be made of them.
class ClusterDistances {
 public:
  /// Bytes that `clusters` take, workspaces of agglomerate() included.
  static double bytes(std::int64_t clusters) noexcept;

  explicit ClusterDistances(std::int64_t clusters);

  /// For i < j; from several threads for different pairs.
  void set(std::int64_t i, std::int64_t j, double distance) noexcept { row(j)[i] = distance; }

  /// Distances of slot j to all lower slots.
  double* row(std::int64_t slot) noexcept { return values_.data() + size_of_rows(slot); }
  const double* row(std::int64_t slot) const noexcept { return values_.data() + size_of_rows(slot); }

 private:
  static std::size_t size_of_rows(std::int64_t rows) noexcept {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(rows > 0 ? rows - 1 : 0) / 2;
  }
  std::vector<double> values_;
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

/// Refuses a value outside the enum.
void check_method(Linkage method);

/// Merges the closest pair, by (distance, lower id, higher id), until `stop`. See linkage().
/// @param distances  finite; row j of cluster j in `clusters`, in that order.
std::vector<Merge> agglomerate(ClusterDistances distances, Clusters clusters, Linkage method, Stop stop,
                               Executor& executor);

}  // namespace stun_ext::detail
