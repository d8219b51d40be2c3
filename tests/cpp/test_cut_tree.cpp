// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/cluster.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

using Labels = std::vector<std::int64_t>;

Labels by_count(const std::vector<Merge>& merges, std::int64_t n_clusters) {
  Labels labels(merges.size() + 1, -1);
  cut_tree_count(merges, n_clusters, labels);
  return labels;
}

Labels by_height(const std::vector<Merge>& merges, double height) {
  Labels labels(merges.size() + 1, -1);
  cut_tree_height(merges, height, labels);
  return labels;
}

// {1,3}, then {0,4}, then both, then 2.
const std::vector<Merge> kTree = {{1, 3, 1, 2}, {0, 4, 2, 2}, {5, 6, 3, 4}, {2, 7, 5, 5}};

TEST(CutTree, ByCount) {
  EXPECT_EQ(by_count(kTree, 5), (Labels{0, 1, 2, 3, 4}));
  EXPECT_EQ(by_count(kTree, 4), (Labels{0, 1, 2, 1, 4}));
  EXPECT_EQ(by_count(kTree, 3), (Labels{0, 1, 2, 1, 0}));
  EXPECT_EQ(by_count(kTree, 2), (Labels{0, 0, 2, 0, 0}));
  EXPECT_EQ(by_count(kTree, 1), (Labels{0, 0, 0, 0, 0}));
  EXPECT_EQ(by_count({}, 1), (Labels{0}));
}

TEST(CutTree, ByHeightIsInclusive) {
  EXPECT_EQ(by_height(kTree, 0.5), (Labels{0, 1, 2, 3, 4}));
  EXPECT_EQ(by_height(kTree, 1), (Labels{0, 1, 2, 1, 4}));
  EXPECT_EQ(by_height(kTree, 2.9), (Labels{0, 1, 2, 1, 0}));
  EXPECT_EQ(by_height(kTree, kInf), (Labels{0, 0, 0, 0, 0}));
  EXPECT_EQ(by_height(kTree, -kInf), (Labels{0, 1, 2, 3, 4}));
  EXPECT_EQ(by_height({}, 1), (Labels{0}));
}

TEST(CutTree, AnInversionWaitsForTheMergeBelowIt) {
  const std::vector<Merge> inverted = {{0, 1, 1.0, 2}, {2, 3, 0.9, 3}};
  EXPECT_EQ(by_height(inverted, 0.95), (Labels{0, 1, 2}));
  EXPECT_EQ(by_height(inverted, 1.0), (Labels{0, 0, 0}));
}

TEST(CutTree, EveryCountGivesThatManyClusters) {
  std::mt19937 generator(1);
  for (int n = 1; n <= 40; n += 3) {
    std::vector<double> distances(static_cast<std::size_t>(n * (n - 1) / 2));
    std::normal_distribution<double> normal;
    for (double& d : distances) d = normal(generator);
    const std::vector<Merge> merges = linkage(distances, Linkage::complete);
    Labels previous = by_count(merges, n);
    for (int k = n; k >= 1; --k) {
      const Labels labels = by_count(merges, k);
      int clusters = 0;
      for (std::size_t i = 0; i < labels.size(); ++i) {
        clusters += labels[i] == static_cast<std::int64_t>(i);
        ASSERT_LE(labels[i], static_cast<std::int64_t>(i));
        ASSERT_EQ(labels[static_cast<std::size_t>(labels[i])], labels[i]);    // the lowest labels itself
        ASSERT_EQ(labels[i], labels[static_cast<std::size_t>(previous[i])]);  // clusters only grow
      }
      ASSERT_EQ(clusters, k);
      if (k < n) {
        ASSERT_EQ(by_height(merges, merges[static_cast<std::size_t>(n - k - 1)].height), labels);
      }
      previous = labels;
    }
  }
}

TEST(CutTree, TakesTheFirstMergesOfADendrogram) {
  const std::vector<Merge> first(kTree.begin(), kTree.begin() + 2);
  for (const std::int64_t k : {3, 4, 5}) {
    Labels some(5), all(5);
    cut_tree_count(first, k, some);
    cut_tree_count(kTree, k, all);
    EXPECT_EQ(some, all) << k;
  }
  Labels some(5), all(5);
  cut_tree_height(first, kInf, some);
  cut_tree_count(kTree, 3, all);
  EXPECT_EQ(some, all);
  expect_error([&] { cut_tree_count(first, 2, some); }, {"n_clusters must be at least 3 with 2 merges of 5", "got 2"});
}

TEST(CutTree, EachArgumentWrongAlone) {
  for (const std::int64_t k : {0, 6, -1}) {
    expect_error([&] { by_count(kTree, k); }, {"[cut_tree] n_clusters must be in [1, 5], got " + std::to_string(k)});
  }
  expect_error([] { by_height(kTree, kNaN); }, {"height must not be NaN"});
  Labels small(4);
  expect_error([&] { cut_tree_count(kTree, 1, small); }, {"at least 5 for 4 merges, got 4"});
  expect_error([&] { cut_tree_height(kTree, 1, small); }, {"at least 5 for 4 merges, got 4"});
  auto broken = [](std::size_t merge, auto change) {
    std::vector<Merge> merges = kTree;
    change(merges[merge]);
    return merges;
  };
  expect_error([&] { by_count(broken(2, [](Merge& m) { m.first = 7; }), 1); }, {"first", "merge 2", "[0, 6], got 7"});
  expect_error([&] { by_count(broken(2, [](Merge& m) { m.second = -1; }), 1); }, {"second", "merge 2", "got -1"});
  expect_error([&] { by_count(broken(2, [](Merge& m) { m.first = 0.5; }), 1); }, {"integer", "got 0.5"});
  expect_error([&] { by_count(broken(2, [](Merge& m) { m.first = kNaN; }), 1); }, {"integer"});
  expect_error([&] { by_count(broken(2, [](Merge& m) { m.first = 1; }), 1); }, {"merged once", "cluster 1", "merge 2"});
  expect_error([&] { by_count(broken(0, [](Merge& m) { m.second = 1; }), 1); }, {"merged once", "cluster 1"});
  expect_error([&] { by_count(broken(3, [](Merge& m) { m.size = 4; }), 1); }, {"merge 3 must count 5", "got 4"});
  expect_error([&] { by_count(broken(1, [](Merge& m) { m.height = kNaN; }), 1); }, {"NaN", "merge 1"});
}

}  // namespace
}  // namespace stun_ext::test
