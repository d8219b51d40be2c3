// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/progress.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
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
/// @param method     Ward and centroid take the distances to be Euclidean, as SciPy does: what they give for others has
///                   no meaning.
/// @return           n−1 merges, heights non-decreasing but for centroid.
/// @throws std::invalid_argument if the length is not n(n−1)/2 for an n >= 1, or on NaN or Inf, or for Ward and
///         centroid a magnitude above 1e150, naming the pair.
/// Memory: 1.13 n² doubles, for n below 2,048 up to 1.3 n². More threads pay from n of about 2,000. Single linkage from
/// n = 512: O(n), with one thread, unless more than 2 n distances tie where clusters merge.
std::vector<Merge> linkage(Span<const double> condensed, Linkage method, Executor& executor = default_executor());

/// How much memory a clustering of rows may take, and where it may end early.
struct LinkageOptions {
  /// Bytes of working memory beside the rows and the result. 0: as much as is fastest (n×n doubles while they fit
  /// 2.5 GiB). Below what n×n needs, distances are computed in passes over the rows, several times; the merges are the
  /// same, heights within 1e-9 (relative; the last bits of Ward's and centroid's vary with the limit and the number of
  /// threads).
  std::int64_t memory_limit = 0;
  std::int64_t n_clusters = 1;                              ///< end when so many clusters are left, in [1, n]
  double height = std::numeric_limits<double>::infinity();  ///< end before the first merge above it; not NaN
  Progress* progress = nullptr;                             ///< told during the call only
};

/// The same from observations, all five methods; distances are those of condensed_distances.
/// Centroid heights can decrease (inversions), as in SciPy.
/// @param rows  [n, d] as in pairwise_distances; may be a memory-mapped file larger than memory.
/// @return      the first merges: n − 1, or fewer if the options end it early.
/// @throws std::invalid_argument as pairwise_distances, if distances overflow (above 1e150 for Ward and centroid, and
///         in passes), or if memory_limit is below what the smallest working set for this n and d takes (the message
///         says how much).
/// @throws CancelledError if the progress says so.
std::vector<Merge> linkage_rows(ConstMatrixView rows, Linkage method, const LinkageOptions& options = {},
                                Executor& executor = default_executor());

/// Flat clusters: the first n − n_clusters merges are applied.
/// @param merges  of n observations: all n − 1, or the first ones (see LinkageOptions).
/// @param labels  n values: the lowest observation in the cluster of each observation.
/// @throws std::invalid_argument if n_clusters is not in [1, n], if there are fewer merges than it needs, or if they
/// are
///         not those of a dendrogram of n observations.
void cut_tree_count(Span<const Merge> merges, std::int64_t n_clusters, Span<std::int64_t> labels);

/// Flat clusters: a merge is applied if it and all merges below it are at most `height` (as SciPy's
/// fcluster(criterion="distance")). Merges that are not given are not applied.
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

/// The star rule on the Euclidean distances (float64) between rows, without an n×n matrix: only the pairs below
/// `threshold` are held, about 25 bytes each. Equal to star_clusters on the matrix that pairwise_distances gives as
/// float64.
/// @param rows     [n, d] as in linkage_rows; n below 2^31.
/// @param options  memory_limit and progress; the others must be unset.
/// @throws std::invalid_argument also if more pairs lie below the threshold than memory_limit holds (the message says
///         how many, as far as they were counted).
/// @throws CancelledError if the progress says so.
std::int64_t star_clusters_rows(ConstMatrixView rows, double threshold, std::int64_t min_clusters,
                                Span<std::int64_t> labels, const LinkageOptions& options = {},
                                Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
