// SPDX-License-Identifier: Apache-2.0
#include "star_reference.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::test {
namespace {

using Labels = std::vector<std::int64_t>;

Distances on_a_line(const std::vector<double>& points) {
  Distances d(points.size(), std::vector<double>(points.size()));
  for (std::size_t i = 0; i < points.size(); ++i) {
    for (std::size_t j = 0; j < points.size(); ++j) d[i][j] = std::abs(points[i] - points[j]);
  }
  return d;
}

StarLabels star(const Distances& d, double threshold, std::int64_t min_clusters) {
  StarLabels result{0, Labels(d.size(), -1)};
  result.n_clusters = star_clusters(matrix_of(d).view(), threshold, min_clusters, result.labels);
  return result;
}

TEST(Star, IsNotCompleteLinkage) {
  // The last merge looks at distances to 1 and to 3 alone: a cluster of diameter 4.2 under a threshold of 4.
  const StarLabels result = star(on_a_line({0, 1, 3, 4.2}), 4.0, 1);
  EXPECT_EQ(result.n_clusters, 1);
  EXPECT_EQ(result.labels, (Labels{0, 0, 0, 0}));
}

TEST(Star, ThresholdIsStrict) {
  const Distances d = on_a_line({0, 1, 5});
  EXPECT_EQ(star(d, 1.0, 1).labels, (Labels{0, 1, 2}));
  EXPECT_EQ(star(d, std::nextafter(1.0, 2.0), 1).labels, (Labels{0, 0, 2}));
  EXPECT_EQ(star(d, -kInf, 1).n_clusters, 3);
  EXPECT_EQ(star(d, kInf, 1).n_clusters, 1);
}

TEST(Star, StopsAtTheMinimumAndAtOneExpert) {
  const Distances d = on_a_line({0, 1, 3, 6});
  for (std::int64_t minimum = 1; minimum <= 4; ++minimum) EXPECT_EQ(star(d, kInf, minimum).n_clusters, minimum);
  EXPECT_EQ(star(d, kInf, 2).labels, (Labels{0, 0, 0, 3}));
  EXPECT_EQ(star({{0.0}}, 1.0, 1).labels, (Labels{0}));
}

TEST(Star, InfiniteDistancesNeverMerge) {
  Distances d = on_a_line({0, 1, 2});
  d[0][1] = d[1][0] = kInf;
  EXPECT_EQ(star(d, kInf, 1).labels, (Labels{0, 1, 1}));  // 0 stays out: its distance to 1 is infinite
}

TEST(Star, MatchesTheRuleWordByWord) {
  std::mt19937 generator(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const auto n = static_cast<std::size_t>(std::uniform_int_distribution<int>(1, 26)(generator));
    const Distances d = random_distances(generator, n, trial % 4);
    const double threshold = std::uniform_real_distribution<double>(-1.5, 4.5)(generator);
    const auto minimum = std::uniform_int_distribution<std::int64_t>(1, static_cast<std::int64_t>(n))(generator);
    const StarLabels expected = star_reference(d, threshold, minimum);
    for (const Layout layout : kLayouts) {
      for (const DType dtype : {DType::f32, DType::f64}) {
        Labels labels(n, -1);
        ASSERT_EQ(star_clusters(matrix_of(d, dtype, layout).view(), threshold, minimum, labels), expected.n_clusters);
        ASSERT_EQ(labels, expected.labels) << "trial " << trial;
      }
    }
  }
}

TEST(StarCount, ReachesEveryNumberOfClusters) {
  std::mt19937 generator(2);
  for (int trial = 0; trial < 300; ++trial) {
    const auto n = static_cast<std::size_t>(std::uniform_int_distribution<int>(1, 20)(generator));
    const Distances d = random_distances(generator, n, trial % 3);
    const Matrix matrix = matrix_of(d);
    for (std::int64_t k = 1; k <= static_cast<std::int64_t>(n); ++k) {
      Labels labels(n, -1);
      const double threshold = star_clusters_count(matrix.view(), k, labels);
      const StarLabels expected = star_reference(d, threshold, k);
      ASSERT_EQ(expected.n_clusters, k);
      ASSERT_EQ(labels, expected.labels);
      if (k == static_cast<std::int64_t>(n)) {
        ASSERT_EQ(threshold, -kInf);
        continue;
      }
      // A pair distance or +Inf, and with the next lower one the rule stops short of k.
      double below = -kInf;
      bool is_distance = threshold == kInf;
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = i + 1; j < n; ++j) {
          is_distance = is_distance || d[i][j] == threshold;
          if (d[i][j] < threshold) below = std::max(below, d[i][j]);
        }
      }
      ASSERT_TRUE(is_distance);
      ASSERT_GT(star_reference(d, below, k).n_clusters, k);
    }
  }
}

TEST(StarCount, SaysWhenInfiniteDistancesStandInTheWay) {
  std::mt19937 generator(3);
  int refused = 0, reached_below_infinity = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const auto n = static_cast<std::size_t>(std::uniform_int_distribution<int>(2, 12)(generator));
    const Distances d = random_distances(generator, n, 3);
    std::vector<double> thresholds = {kInf};
    for (const auto& row : d) thresholds.insert(thresholds.end(), row.begin(), row.end());
    for (std::int64_t k = 1; k < static_cast<std::int64_t>(n); ++k) {
      bool is_reachable = false;
      for (const double t : thresholds)
        is_reachable = is_reachable || (!std::isnan(t) && star_reference(d, t, k).n_clusters == k);
      Labels labels(n, -1);
      if (is_reachable) {
        const double threshold = star_clusters_count(matrix_of(d).view(), k, labels);
        ASSERT_EQ(star_reference(d, threshold, k).labels, labels);
        reached_below_infinity += star_reference(d, kInf, k).n_clusters != k;
      } else {
        ++refused;
        expect_error([&] { star_clusters_count(matrix_of(d).view(), k, labels); },
                     {"[star_clusters_count]", "infinite distances leave more than " + std::to_string(k)});
      }
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(reached_below_infinity, 0);  // the trials do hold the case where only a lower threshold reaches it
}

TEST(Star, EachArgumentWrongAlone) {
  const Matrix good = matrix_of(on_a_line({0, 1, 3}));
  Labels labels(3), few(2);
  for (const std::int64_t k : {0, 4}) {
    expect_error([&] { star_clusters(good.view(), 1, k, labels); },
                 {"[star_clusters] min_clusters must be in [1, 3], got " + std::to_string(k)});
    expect_error([&] { star_clusters_count(good.view(), k, labels); },
                 {"[star_clusters_count] n_clusters must be in [1, 3], got " + std::to_string(k)});
  }
  expect_error([&] { star_clusters(good.view(), kNaN, 1, labels); }, {"threshold must not be NaN"});
  expect_error([&] { star_clusters(good.view(), 1, 1, few); }, {"labels", "3 experts, got 2"});
  expect_error([&] { star_clusters_count(good.view(), 1, few); }, {"labels", "3 experts, got 2"});
  Matrix wide(DType::f32, 2, 3), half(DType::f16, 3, 3), none(DType::f32, 0, 0);
  expect_error([&] { star_clusters(wide.view(), 1, 1, few); }, {"[E, E]", "[2, 3]"});
  expect_error([&] { star_clusters(half.view(), 1, 1, labels); }, {"float32, float64, got float16"});
  expect_error([&] { star_clusters(none.view(), 1, 1, {}); }, {"[E, E]", "[0, 0]"});
  for (const double bad : {kNaN, -kInf}) {
    Distances d = on_a_line({0, 1, 3});
    d[2][1] = bad;
    expect_error([&] { star_clusters(matrix_of(d).view(), 1, 1, labels); }, {"NaN or -Inf", "row 2, column 1"});
    d[2][1] = 1, d[1][1] = bad;  // the diagonal is not read
    EXPECT_EQ(star_clusters(matrix_of(d).view(), 9, 1, labels), 1);
  }
}

}  // namespace
}  // namespace stun_ext::test
