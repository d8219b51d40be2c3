// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include "agglomerate.hpp"
#include "check.hpp"
#include "distance.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"

namespace stun_ext {

std::vector<Merge> linkage_rows(ConstMatrixView rows, Linkage method, const LinkageOptions& options,
                                Executor& executor) {
  constexpr const char* kOperation = "linkage";
  detail::check_method(method);
  detail::check_rows(kOperation, rows, executor);
  if (options.n_clusters < 1 || options.n_clusters > rows.rows) {
    detail::fail(kOperation, "n_clusters must be in [1, ", rows.rows, "], got ", options.n_clusters);
  }
  if (std::isnan(options.height)) detail::fail(kOperation, "height must not be NaN");
  if (options.memory_limit < 0) {
    detail::fail(kOperation, "memory_limit must not be negative, got ", options.memory_limit);
  }
  // Ward and centroid square the distances.
  const bool squares = method == Linkage::ward || method == Linkage::centroid;
  const double limit = squares ? 1e150 : std::numeric_limits<double>::max();
  detail::ClusterDistances distances(rows.rows);
  auto sink = [&](std::int64_t i, std::int64_t j, double distance) {
    if (!(distance <= limit)) {
      detail::fail(kOperation, "distances must be at most ", limit, " for this method, got ", distance,
                   " for the pair (", i, ", ", j, ")");
    }
    distances.set(i, j, distance);
  };
  detail::for_each_distance(rows, sink, executor);
  return detail::agglomerate(std::move(distances), detail::Clusters::singletons(rows.rows), method,
                             {options.n_clusters, options.height}, executor);
}

std::int64_t star_clusters_rows(ConstMatrixView rows, double threshold, std::int64_t min_clusters,
                                Span<std::int64_t> labels, const LinkageOptions& /*options*/, Executor& executor) {
  std::vector<double> matrix(static_cast<std::size_t>(rows.rows) * static_cast<std::size_t>(rows.rows));
  const MatrixView view = {matrix.data(), rows.rows, rows.rows, rows.rows, 1, DType::f64};
  pairwise_distances(rows, false, view, executor);
  return star_clusters(view, threshold, min_clusters, labels);
}

}  // namespace stun_ext
