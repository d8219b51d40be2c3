// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include "star_reference.hpp"
#include "stun_ext/allocation.hpp"

namespace stun_ext::test {
namespace {

struct Layers {
  explicit Layers(const std::vector<Distances>& layers) {
    for (const Distances& layer : layers) matrices.push_back(matrix_of(layer));
    for (const Matrix& matrix : matrices) views.push_back(matrix.view());
  }
  std::vector<Matrix> matrices;
  std::vector<ConstMatrixView> views;
};

Distances group_of(const Distances& d, std::size_t group, std::size_t groups) {
  const std::size_t size = d.size() / groups;
  Distances part(size, std::vector<double>(size));
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) part[i][j] = d[group * size + i][group * size + j];
  }
  return part;
}

/// Every pair distance, and +Inf, tried in every layer: nearest total, then larger total, then lower threshold.
Allocation brute_force(const std::vector<Distances>& layers, std::int64_t total, std::int64_t minimum,
                       std::size_t groups) {
  std::vector<double> thresholds = {kInf};
  for (const Distances& layer : layers) {
    for (std::size_t group = 0; group < groups; ++group) {
      for (const auto& row : group_of(layer, group, groups)) {
        for (const double d : row) {
          if (std::isfinite(d)) thresholds.push_back(d);
        }
      }
    }
  }
  std::sort(thresholds.begin(), thresholds.end());
  Allocation best{0, {}, total, -1};
  for (const double threshold : thresholds) {
    Allocation trial{threshold, {}, total, 0};
    for (const Distances& layer : layers) {
      std::int64_t most = 0;
      for (std::size_t group = 0; group < groups; ++group) {
        const auto in_group = minimum / static_cast<std::int64_t>(groups);
        most = std::max(most, star_reference(group_of(layer, group, groups), threshold, in_group).n_clusters);
      }
      trial.counts.push_back(most * static_cast<std::int64_t>(groups));
      trial.reached_total += trial.counts.back();
    }
    const auto far = std::abs(trial.reached_total - total), best_far = std::abs(best.reached_total - total);
    if (best.reached_total < 0 || far < best_far || (far == best_far && trial.reached_total > best.reached_total)) {
      best = trial;
    }
  }
  return best;
}

TEST(Allocation, HandCheckable) {
  // Layer 0: pairs at 1 and 3; layer 1: pairs at 2 and 4.
  auto line = [](double a, double b) { return Distances{{0, a, 9}, {a, 0, b}, {9, b, 0}}; };
  const Layers layers({line(1, 3), line(2, 4)});
  const Allocation five = allocate_experts(layers.views, 5, 1);
  EXPECT_EQ(five.threshold, 2.0);
  EXPECT_EQ(five.counts, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(five.requested_total, 5);
  EXPECT_EQ(five.reached_total, 5);
  const Allocation all = allocate_experts(layers.views, 6, 1);
  EXPECT_EQ(all.threshold, 1.0);
  EXPECT_EQ(all.counts, (std::vector<std::int64_t>{3, 3}));
  EXPECT_EQ(allocate_experts(layers.views, 2, 1).counts, (std::vector<std::int64_t>{1, 1}));
}

TEST(Allocation, UnreachableTotalsGiveTheNearestLargerFirst) {
  // Both layers change together, from 2 to 1 expert: 3 is out of reach, and 4 and 2 are equally near.
  const Distances pair = {{0, 1}, {1, 0}};
  const Layers layers({pair, pair});
  const Allocation three = allocate_experts(layers.views, 3, 1);
  EXPECT_EQ(three.reached_total, 4);
  EXPECT_EQ(three.requested_total, 3);
  EXPECT_EQ(three.threshold, 1.0);
}

TEST(Allocation, MatchesBruteForceOnAdversarialMatrices) {
  std::mt19937 generator(1);
  int unreachable = 0;
  for (int trial = 0; trial < 600; ++trial) {
    const std::size_t groups = trial % 3 == 2 ? 2 : 1;
    std::vector<Distances> layers(static_cast<std::size_t>(std::uniform_int_distribution<int>(1, 4)(generator)));
    std::int64_t experts = 0, fewest = 99;
    for (Distances& layer : layers) {
      const auto n = groups * static_cast<std::size_t>(std::uniform_int_distribution<int>(1, 6)(generator));
      layer = random_distances(generator, n, trial / 3 % 4);
      experts += static_cast<std::int64_t>(n);
      fewest = std::min(fewest, static_cast<std::int64_t>(n));
    }
    const auto in_group =
        std::uniform_int_distribution<std::int64_t>(1, fewest / static_cast<std::int64_t>(groups))(generator);
    const std::int64_t minimum = in_group * static_cast<std::int64_t>(groups);
    const std::int64_t least = minimum * static_cast<std::int64_t>(layers.size());
    const std::int64_t total = std::uniform_int_distribution<std::int64_t>(least, experts)(generator);
    const Layers input(layers);
    const Allocation got = allocate_experts(input.views, total, minimum, static_cast<std::int64_t>(groups));
    const Allocation expected = brute_force(layers, total, minimum, groups);
    ASSERT_EQ(got.reached_total, expected.reached_total) << "trial " << trial;
    ASSERT_EQ(got.threshold, expected.threshold) << "trial " << trial;
    ASSERT_EQ(got.counts, expected.counts) << "trial " << trial;
    ASSERT_EQ(got.requested_total, total);
    unreachable += got.reached_total != total;
  }
  EXPECT_GT(unreachable, 50);  // the trials do hold such totals
}

TEST(Allocation, MatchesBruteForceAcrossWindows) {
  // Enough breakpoints for several windows of the search.
  std::mt19937 generator(2);
  for (int trial = 0; trial < 6; ++trial) {
    std::vector<Distances> layers;
    for (int layer = 0; layer < 3; ++layer) layers.push_back(random_distances(generator, 24, trial % 2 == 0 ? 1 : 3));
    const Layers input(layers);
    for (const std::int64_t total : {7, 20, 41, 66, 72}) {
      const Allocation got = allocate_experts(input.views, total, 2);
      const Allocation expected = brute_force(layers, total, 2, 1);
      ASSERT_EQ(got.threshold, expected.threshold) << total;
      ASSERT_EQ(got.counts, expected.counts) << total;
    }
  }
}

TEST(Allocation, LayersMayDifferAndThreadsDoNotMatter) {
  std::mt19937 generator(3);
  std::vector<Distances> distances;
  for (const std::size_t n : {4, 40, 17, 64}) distances.push_back(random_distances(generator, n, 1));
  const Layers layers(distances);
  const Allocation first = allocate_experts(layers.views, 100, 3);
  for (const int threads : {1, 2, 3, 7}) {
    const Threads scope(threads);
    const Allocation again = allocate_experts(layers.views, 100, 3);
    EXPECT_EQ(again.threshold, first.threshold);
    EXPECT_EQ(again.counts, first.counts);
  }
}

TEST(Allocation, EndsOnAllEqualDistances) {
  std::mt19937 generator(4);
  const std::vector<Distances> distances(20, random_distances(generator, 64, 0));
  const Layers layers(distances);
  for (const std::int64_t total : {20, 21, 640, 1279, 1280}) {
    const Allocation got = allocate_experts(layers.views, total, 1);
    EXPECT_EQ(got.reached_total, total < 650 ? 20 : 1280);
  }
}

TEST(Allocation, EachArgumentWrongAlone) {
  std::mt19937 generator(5);
  const Layers good({random_distances(generator, 4, 1), random_distances(generator, 6, 1)});
  expect_error([&] { allocate_experts({}, 1, 1); }, {"[allocate_experts]", "at least one layer"});
  expect_error([&] { allocate_experts(good.views, 1, 1); }, {"total must be in [2, 10], got 1"});
  expect_error([&] { allocate_experts(good.views, 11, 1); }, {"total must be in [2, 10], got 11"});
  expect_error([&] { allocate_experts(good.views, 9, 0); }, {"min_experts must be in [1, 4] for layer 0, got 0"});
  expect_error([&] { allocate_experts(good.views, 9, 5); }, {"min_experts must be in [1, 4] for layer 0, got 5"});
  expect_error([&] { allocate_experts(good.views, 9, 1, 0); }, {"n_group must be at least 1, got 0"});
  expect_error([&] { allocate_experts(good.views, 9, 4, 4); }, {"n_group must divide", "6 experts of layer 1"});
  expect_error([&] { allocate_experts(good.views, 9, 3, 2); }, {"multiple of n_group = 2, got 3"});
  Distances broken = random_distances(generator, 4, 1);
  broken[2][3] = kNaN;
  const Layers bad({random_distances(generator, 4, 1), broken});
  expect_error([&] { allocate_experts(bad.views, 5, 1); }, {"[allocate_experts]", "row 2, column 3", "layer 1"});
}

}  // namespace
}  // namespace stun_ext::test
