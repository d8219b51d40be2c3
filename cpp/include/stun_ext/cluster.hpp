// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext {

/// Agglomerative linkage rules, as SciPy names them.
enum class Linkage : std::uint8_t { single, complete, average, ward, centroid };

/// One merge of a dendrogram, in the layout of one row of SciPy's linkage matrix Z.
struct Merge {
  double first;   ///< lower id of the two merged clusters (0…n−1 observations, n+i the cluster made by merge i)
  double second;  ///< higher id
  double height;  ///< distance at which they merged
  double size;    ///< observations in the new cluster
};

/// Agglomerative clustering of condensed distances.
///
/// Merges the closest pair first; among equal distances the pair with the lowest (lower id, higher id) in SciPy's
/// numbering. Cluster distances follow the Lance–Williams recurrence in float64. Equal to
/// scipy.cluster.hierarchy.linkage wherever the distances met are distinct. An average (or Ward) distance is held
/// between (above) the two that it comes from, which it can leave by a rounding: so equal distances stay equal.
///
/// @param condensed  n(n−1)/2 distances, float64, finite (negative ones are legal: co-activation distances).
/// @param method     single, complete or average: Ward and centroid are defined on rows, use linkage_rows.
/// @return           n−1 merges, heights non-decreasing.
/// @throws std::invalid_argument if the length is not n(n−1)/2 for an n >= 1, on NaN or Inf (naming the pair),
///         or if the method is Ward or centroid.
/// Memory: 0.8 n² doubles.
std::vector<Merge> linkage(Span<const double> condensed, Linkage method, Executor& executor = default_executor());

/// The same from observations, all five methods; distances are those of condensed_distances.
/// Centroid heights can decrease (inversions), as in SciPy.
/// @param rows  [n, d] as in pairwise_distances.
/// @throws std::invalid_argument as pairwise_distances, or if distances overflow (above 1e150 for Ward and centroid).
std::vector<Merge> linkage_rows(ConstMatrixView rows, Linkage method, Executor& executor = default_executor());

/// Flat clusters: the first n − n_clusters merges are applied.
/// @param labels  n values: the lowest observation in the cluster of each observation.
/// @throws std::invalid_argument if n_clusters is not in [1, n] or the merges are not a dendrogram of n observations.
void cut_tree_count(Span<const Merge> merges, std::int64_t n_clusters, Span<std::int64_t> labels);

/// Flat clusters: a merge is applied if it and all merges below it are at most `height` (as SciPy's
/// fcluster(criterion="distance")).
void cut_tree_height(Span<const Merge> merges, double height, Span<std::int64_t> labels);

/// The rule of the released STUN code ("star"): one pass over the pairs by (distance, i, j), i < j.
///
/// 1. Stop at distance >= threshold, or when `min_clusters` clusters are left. 2. Skip a pair in one cluster.
/// 3. If every distance from j to cluster(i) and from i to cluster(j) is < threshold, merge. 4. Otherwise the pair's
/// distance becomes infinite, which blocks later tests. It is not complete linkage, and the number of clusters is not
/// monotone in the threshold.
///
/// @param distances  [E, E] float32 or float64, E at most 65,536, symmetric: the upper triangle alone decides
/// (distances
///                   computed by matrix products are often not quite symmetric), the diagonal is not read.
///                   +Inf off the diagonal is legal and means "never merge"; NaN and −Inf are errors naming the row.
/// @param threshold  any number but NaN; +Inf merges everything that is finite.
/// @param min_clusters in [1, E].
/// @param labels     E values: the lowest expert in each expert's cluster.
/// @return           the number of clusters.
std::int64_t star_clusters(ConstMatrixView distances, double threshold, std::int64_t min_clusters,
                           Span<std::int64_t> labels);

/// The star rule at exactly `n_clusters`: the threshold is bisected over the pair distances, with
/// min_clusters = n_clusters, until the rule ends at that number.
/// @return  the threshold used: a pair distance, or +Inf (−Inf when n_clusters = E and nothing merges).
/// @throws std::invalid_argument also if infinite distances leave more than n_clusters clusters at any threshold.
double star_clusters_count(ConstMatrixView distances, std::int64_t n_clusters, Span<std::int64_t> labels);

}  // namespace stun_ext
