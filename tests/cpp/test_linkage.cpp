// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <thread>
#include <tuple>

#include "cluster/agglomerate.hpp"
#include "cluster/lance_williams.hpp"
#include "dispatch.hpp"
#include "kernels/linkage.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/error.hpp"
#include "stun_ext/progress.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

constexpr Linkage kMethods[] = {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward, Linkage::centroid};

using Members = std::vector<std::int64_t>;

/// Distance of two clusters by its definition on their members (no recurrence), in long double.
class Definition {
 public:
  Definition(std::vector<double> condensed, std::int64_t n) : condensed_(std::move(condensed)), n_(n) {}
  explicit Definition(const Matrix& rows) : rows_(&rows), n_(rows.view().rows) {
    condensed_.resize(static_cast<std::size_t>(n_ * (n_ - 1) / 2));
    condensed_distances(rows.view(), condensed_);
  }
  std::int64_t n() const { return n_; }
  const std::vector<double>& condensed() const { return condensed_; }

  double operator()(Linkage method, const Members& a, const Members& b) const {
    long double lowest = kInf, highest = -kInf, sum = 0;
    for (const std::int64_t i : a) {
      for (const std::int64_t j : b) {
        const long double d = at(i, j);
        lowest = std::min(lowest, d), highest = std::max(highest, d), sum += d;
      }
    }
    const auto size_a = static_cast<long double>(a.size()), size_b = static_cast<long double>(b.size());
    switch (method) {
      case Linkage::single:
        return static_cast<double>(lowest);
      case Linkage::complete:
        return static_cast<double>(highest);
      case Linkage::average:
        return static_cast<double>(sum / (size_a * size_b));
      case Linkage::centroid:
        return static_cast<double>(between_means(a, b));
      case Linkage::ward:
        return static_cast<double>(std::sqrt(2 * size_a * size_b / (size_a + size_b)) * between_means(a, b));
    }
    return kNaN;
  }

 private:
  double at(std::int64_t i, std::int64_t j) const {
    if (i > j) std::swap(i, j);
    return condensed_[static_cast<std::size_t>(i * (2 * n_ - i - 1) / 2 + (j - i - 1))];
  }
  long double between_means(const Members& a, const Members& b) const {
    long double squares = 0;
    for (std::int64_t c = 0; c < rows_->view().cols; ++c) {
      long double mean_a = 0, mean_b = 0;
      for (const std::int64_t i : a) mean_a += rows_->get(i, c);
      for (const std::int64_t i : b) mean_b += rows_->get(i, c);
      const long double d = mean_a / static_cast<long double>(a.size()) - mean_b / static_cast<long double>(b.size());
      squares += d * d;
    }
    return std::sqrt(squares);
  }

  const Matrix* rows_ = nullptr;
  std::vector<double> condensed_;
  std::int64_t n_;
};

/// Greedy by (distance, lower id, higher id), searching all pairs at every step.
std::vector<Merge> naive(const Definition& distance, Linkage method) {
  std::map<std::int64_t, Members> clusters;
  for (std::int64_t i = 0; i < distance.n(); ++i) clusters[i] = {i};
  std::map<std::pair<std::int64_t, std::int64_t>, double> known;
  std::vector<Merge> merges;
  while (clusters.size() > 1) {
    std::tuple<double, std::int64_t, std::int64_t> best{kInf, 0, 0};
    for (auto a = clusters.begin(); a != clusters.end(); ++a) {
      for (auto b = std::next(a); b != clusters.end(); ++b) {
        const auto [entry, is_new] = known.try_emplace({a->first, b->first}, 0.0);
        if (is_new) entry->second = distance(method, a->second, b->second);
        best = std::min(best, {entry->second, a->first, b->first});
      }
    }
    const auto [height, low, high] = best;
    Members merged = clusters[low];
    merged.insert(merged.end(), clusters[high].begin(), clusters[high].end());
    merges.push_back({static_cast<double>(low), static_cast<double>(high), height, static_cast<double>(merged.size())});
    clusters.erase(low), clusters.erase(high);
    clusters[distance.n() + static_cast<std::int64_t>(merges.size()) - 1] = merged;
  }
  return merges;
}

void expect_same(const std::vector<Merge>& got, const std::vector<Merge>& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].first, expected[i].first) << "merge " << i;
    ASSERT_EQ(got[i].second, expected[i].second) << "merge " << i;
    ASSERT_EQ(got[i].size, expected[i].size) << "merge " << i;
    ASSERT_NEAR(got[i].height, expected[i].height, tolerance * std::abs(expected[i].height)) << "merge " << i;
  }
}

TEST(Linkage, HandCheckable) {
  // Points 0, 1, 3, 7 on a line.
  const std::vector<double> distances = {1, 3, 7, 2, 6, 4};
  expect_same(linkage(distances, Linkage::single), {{0, 1, 1, 2}, {2, 4, 2, 3}, {3, 5, 4, 4}}, 0);
  expect_same(linkage(distances, Linkage::complete), {{0, 1, 1, 2}, {2, 4, 3, 3}, {3, 5, 7, 4}}, 0);
  expect_same(linkage(distances, Linkage::average), {{0, 1, 1, 2}, {2, 4, 2.5, 3}, {3, 5, 17.0 / 3.0, 4}}, 1e-15);
}

TEST(Linkage, OneAndTwoObservations) {
  EXPECT_TRUE(linkage({}, Linkage::complete).empty());
  expect_same(linkage(std::vector<double>{-2.5}, Linkage::average), {{0, 1, -2.5, 2}}, 0);
  Matrix one(DType::f32, 1, 3), two(DType::f32, 2, 1);
  one.fill([](std::int64_t, std::int64_t) { return 1.0; });
  two.fill([](std::int64_t r, std::int64_t) { return r == 0 ? 1.0 : 4.0; });
  for (const Linkage method : kMethods) {
    EXPECT_TRUE(linkage_rows(one.view(), method).empty());
    expect_same(linkage_rows(two.view(), method), {{0, 1, 3, 2}}, 0);
  }
}

TEST(Linkage, EveryMethodMatchesItsDefinitionOnDistinctDistances) {
  std::mt19937 generator(1);
  for (const auto& [n, d] : {std::pair<int, int>{3, 2}, {8, 1}, {13, 4}, {40, 2}, {70, 9}}) {
    Matrix rows(DType::f32, n, d);
    rows.fill_normal(generator);
    const Definition distance(rows);
    for (const Linkage method : kMethods) {
      const std::vector<Merge> expected = naive(distance, method);
      expect_same(linkage_rows(rows.view(), method), expected, 1e-11);
      expect_same(linkage(distance.condensed(), method), expected, 1e-11);
    }
  }
}

TEST(Linkage, TiesGoByLowerThenHigherId) {
  std::mt19937 generator(2);
  for (int trial = 0; trial < 300; ++trial) {
    const int n = std::uniform_int_distribution<int>(2, 24)(generator);
    std::uniform_int_distribution<int> value(trial % 3 == 0 ? -2 : 0, trial % 5);
    std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
    for (double& d : condensed) d = trial % 5 < value.a() ? value.a() : value(generator);
    const Definition distance(condensed, n);
    for (const Linkage method : {Linkage::single, Linkage::complete}) {
      expect_same(linkage(condensed, method), naive(distance, method), 0);
    }
  }
}

TEST(Linkage, TiedAveragesAndWardStayTied) {
  // All distances equal: every mean is that distance, although the sums behind it are rounded.
  for (const double d : {0.1, 1.0 / 3.0, -0.7, 0.0}) {
    const std::vector<double> condensed(45, d);
    const std::vector<Merge> merges = linkage(condensed, Linkage::average);
    expect_same(merges, naive(Definition(condensed, 10), Linkage::complete), 0);
    for (const Merge& merge : merges) EXPECT_EQ(merge.height, d);
  }
  Matrix rows(DType::f32, 9, 3);
  rows.fill([](std::int64_t, std::int64_t c) { return 0.1 * static_cast<double>(c); });
  for (const Linkage method : kMethods) {  // nine copies of one row
    expect_same(linkage_rows(rows.view(), method), naive(Definition(std::vector<double>(36, 0.0), 9), Linkage::single),
                0);
  }
}

TEST(Linkage, DuplicateRowsMergeAtZeroFirst) {
  std::mt19937 generator(3);
  Matrix base(DType::bf16, 12, 6), rows(DType::bf16, 24, 6);
  base.fill_normal(generator);
  rows.fill([&](std::int64_t r, std::int64_t c) { return r % 12 == 5 ? 0.0 : base.get(r % 12, c); });
  for (const Linkage method : kMethods) {
    const std::vector<Merge> merges = linkage_rows(rows.view(), method);
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(merges[i].first, static_cast<double>(i));
      EXPECT_EQ(merges[i].second, static_cast<double>(i + 12));
      EXPECT_EQ(merges[i].height, 0.0);
    }
    EXPECT_GT(merges[12].height, 0.0);
  }
}

TEST(Linkage, HeightsNeverDecreaseExceptCentroids) {
  std::mt19937 generator(4);
  for (int trial = 0; trial < 20; ++trial) {
    Matrix rows(DType::f32, 60, 2);
    std::uniform_int_distribution<int> grid(0, 6);  // a grid: many ties and near-ties after rounding
    rows.fill([&](std::int64_t, std::int64_t) { return 0.1 * grid(generator); });
    for (const Linkage method : {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward}) {
      const std::vector<Merge> merges = linkage_rows(rows.view(), method);
      for (std::size_t i = 1; i < merges.size(); ++i) ASSERT_GE(merges[i].height, merges[i - 1].height);
    }
  }
}

TEST(Linkage, CentroidHeightsMayInvert) {
  // An equilateral triangle: after the first side, the third corner is nearer to its middle.
  Matrix rows(DType::f64, 3, 2);
  const double corners[3][2] = {{0, 0}, {1, 0}, {0.5, 0.9}};
  rows.fill([&](std::int64_t r, std::int64_t c) { return corners[r][c]; });
  expect_same(linkage_rows(rows.view(), Linkage::centroid), {{0, 1, 1, 2}, {2, 3, 0.9, 3}}, 1e-14);
}

TEST(Linkage, CentroidOfCollinearPointsIsNotNaN) {
  // 0 is the mean of −1 and 1: its distance to their centroid is the root of a difference that rounding can turn
  // negative.
  Matrix rows(DType::f64, 3, 3);
  const double direction[3] = {0.1, 0.3, 0.7};
  rows.fill([&](std::int64_t r, std::int64_t c) { return (r == 2 ? 0.0 : r == 0 ? -1.0 : 1.0) * direction[c]; });
  for (const Merge& merge : linkage_rows(rows.view(), Linkage::centroid)) EXPECT_TRUE(std::isfinite(merge.height));
}

/// Greedy by (distance, lower id, higher id), searching all pairs at every step, by the recurrence: exact bits, and so
/// exact ties, for every method.
std::vector<Merge> naive_recurrence(const std::vector<double>& condensed, std::size_t n, Linkage method) {
  std::vector<std::vector<double>> distance(2 * n, std::vector<double>(2 * n));  // [higher][lower]
  for (std::size_t i = 0, k = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) distance[j][i] = condensed[k++];
  }
  std::vector<double> size(2 * n, 1.0);
  std::vector<std::size_t> active(n);
  for (std::size_t i = 0; i < n; ++i) active[i] = i;
  std::vector<Merge> merges;
  for (std::size_t id = n; active.size() > 1; ++id) {
    std::size_t x = active[0], y = active[1];
    for (std::size_t a = 0; a < active.size(); ++a) {
      for (std::size_t b = a + 1; b < active.size(); ++b) {
        if (distance[active[b]][active[a]] < distance[y][x]) x = active[a], y = active[b];
      }
    }
    const double height = distance[y][x];
    active.erase(std::remove_if(active.begin(), active.end(), [&](std::size_t i) { return i == x || i == y; }),
                 active.end());
    for (const std::size_t i : active) {
      distance[id][i] =
          detail::lance_williams(method, distance[std::max(x, i)][std::min(x, i)],
                                 distance[std::max(y, i)][std::min(y, i)], height, size[x], size[y], size[i]);
    }
    size[id] = size[x] + size[y];
    merges.push_back({static_cast<double>(x), static_cast<double>(y), height, size[id]});
    active.push_back(id);
  }
  return merges;
}

TEST(Linkage, TiesAndBitsAreThoseOfTheNaiveOrderWithEveryIsaAndThreadCount) {
  std::mt19937 generator(6);
  for (const std::size_t n : {2, 3, 7, 8, 9, 16, 17, 31, 33, 65, 130, 300}) {
    for (const int values : {1, 3, 40, 0}) {  // 0: distinct
      std::vector<double> condensed(n * (n - 1) / 2);
      for (double& d : condensed) {
        d = values == 0 ? std::uniform_real_distribution<double>(0.5, 1.0)(generator)
                        : 1.0 + std::uniform_int_distribution<int>(0, values)(generator);
      }
      for (const Linkage method : kMethods) {
        const std::vector<Merge> expected = naive_recurrence(condensed, n, method);
        for (const Isa isa : cpu_info().supported) {
          const ForcedIsa forced(isa);
          for (const int threads : {1, 4}) {
            const Threads scope(threads);
            const std::vector<Merge> got = linkage(condensed, method);
            ASSERT_EQ(got.size(), expected.size());
            ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(Merge)), 0)
                << "n " << n << ", values " << values << ", method " << static_cast<int>(method) << ", isa "
                << static_cast<int>(isa) << ", threads " << threads;
          }
        }
      }
    }
  }
}

TEST(Linkage, SingleOfManyWithTies) {  // few, many, and more than fit
  std::mt19937 generator(9);
  const std::size_t n = 600;
  for (const int values : {1, 1000, 20000, 300000, 10000000}) {
    std::vector<double> condensed(n * (n - 1) / 2);
    for (double& d : condensed) d = std::uniform_int_distribution<int>(1, values)(generator);
    const std::vector<Merge> expected = naive_recurrence(condensed, n, Linkage::single);
    for (const Isa isa : cpu_info().supported) {
      const ForcedIsa forced(isa);
      SCOPED_TRACE(values);
      expect_same(linkage(condensed, Linkage::single), expected, 0);
    }
  }
}

TEST(Linkage, WardOfEverySizeHasTheBitsOfDivision) {
  constexpr std::int64_t kCount = 1 << 16;
  std::vector<double> near(kCount), far(kCount), size(kCount), penalty(kCount, 0.0), out(kCount);
  std::mt19937 generator(10);
  for (std::size_t k = 0; k < near.size(); ++k) {
    near[k] = std::uniform_real_distribution<double>(1.0, 2.0)(generator), far[k] = near[k] + 1.0;
  }
  for (const double first : {1.0, 65537.0, 2147418112.0}) {
    for (std::size_t k = 0; k < size.size(); ++k) size[k] = first + static_cast<double>(k);
    const detail::MergedRow row = {near.data(), far.data(), size.data(), penalty.data(), kCount, 0.5, 3, 4, out.data()};
    for (const Isa isa : cpu_info().supported) {
      const ForcedIsa forced(isa);
      STUN_EXT_KERNELS(linkage).ward(row);
      for (std::size_t k = 0; k < out.size(); ++k) {
        ASSERT_EQ(out[k], detail::lance_williams(Linkage::ward, near[k], far[k], 0.5, 3, 4, size[k])) << size[k];
      }
    }
  }
}

TEST(Linkage, ManyClustersAreTheSameWithEveryIsaAndThreadCount) {  // several squeezes
  std::mt19937 generator(7);
  const std::size_t n = 1100;
  std::vector<double> condensed(n * (n - 1) / 2);
  for (double& d : condensed) d = std::uniform_int_distribution<int>(1, 5000)(generator);
  for (const Linkage method : kMethods) {
    std::vector<Merge> first;
    for (const Isa isa : cpu_info().supported) {
      const ForcedIsa forced(isa);
      for (const int threads : {1, 3}) {
        const Threads scope(threads);
        const std::vector<Merge> merges = linkage(condensed, method);
        if (first.empty()) first = merges;
        ASSERT_EQ(std::memcmp(first.data(), merges.data(), first.size() * sizeof(Merge)), 0);
      }
    }
  }
}

TEST(Linkage, WhatNoCacheHoldsIsTheSameWithEveryIsaAndThreadCount) {  // enough for threads, too
  std::mt19937 generator(11);
  const auto n = static_cast<std::size_t>(std::sqrt(static_cast<double>(detail::kStreamedFrom))) + 50;
  std::vector<double> condensed(n * (n - 1) / 2);
  for (double& d : condensed) d = std::uniform_real_distribution<double>(1.0, 2.0)(generator);
  std::vector<Merge> first;
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    for (const int threads : {1, 2}) {
      const Threads scope(threads);
      const std::vector<Merge> merges = linkage(condensed, Linkage::average);
      if (first.empty()) first = merges;
      ASSERT_EQ(std::memcmp(first.data(), merges.data(), first.size() * sizeof(Merge)), 0);
    }
  }
}

TEST(Linkage, SameAtEveryThreadCount) {
  std::mt19937 generator(5);
  Matrix rows(DType::f16, 300, 17);
  rows.fill_normal(generator);
  for (const Linkage method : kMethods) {
    std::vector<Merge> first;
    for (const int threads : {1, 2, 3, 7}) {
      const Threads scope(threads);
      const std::vector<Merge> merges = linkage_rows(rows.view(), method);
      if (first.empty()) first = merges;
      ASSERT_EQ(std::memcmp(first.data(), merges.data(), first.size() * sizeof(Merge)), 0);
    }
  }
}

/// Single linkage by Kruskal's algorithm over all pairs, for distances that are distinct.
std::vector<Merge> kruskal(const std::vector<double>& condensed, std::size_t n) {
  std::vector<std::tuple<double, std::size_t, std::size_t>> pairs;
  for (std::size_t i = 0, k = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) pairs.emplace_back(condensed[k++], i, j);
  }
  std::sort(pairs.begin(), pairs.end());
  std::vector<std::size_t> id(n);
  for (std::size_t i = 0; i < n; ++i) id[i] = i;
  std::vector<Merge> merges;
  for (const auto& [distance, i, j] : pairs) {
    const std::size_t a = std::min(id[i], id[j]), b = std::max(id[i], id[j]);
    if (a == b) continue;
    double size = 0;
    for (std::size_t& of : id) {
      if (of == a || of == b) of = n + merges.size(), ++size;
    }
    merges.push_back({static_cast<double>(a), static_cast<double>(b), distance, size});
  }
  return merges;
}

TEST(Linkage, SingleOfManyIsThatOfAllPairsSortedWithEveryIsa) {
  constexpr std::int64_t n = 700;
  using Coordinate = double (*)(std::int64_t row, std::int64_t column);
  const std::pair<const char*, Coordinate> shapes[] = {
      {"one cloud", [](std::int64_t, std::int64_t) { return 0.0; }},
      {"clusters one after the other",
       [](std::int64_t r, std::int64_t c) { return c == r / 100 % 4 ? 60.0 + r / 100 : 0; }},
      {"clusters in turn", [](std::int64_t r, std::int64_t c) { return c == r % 3 ? 50.0 : 0; }},
      {"clusters of clusters",
       [](std::int64_t r, std::int64_t c) { return r >> (2 * c) & 1 ? 1e3 / (1 << 2 * c) : 0; }},
      {"a line, ascending", [](std::int64_t r, std::int64_t c) { return c == 0 ? 4.0 * r : 0; }},
      {"a line, ever wider", [](std::int64_t r, std::int64_t c) { return c == 0 ? 0.01 * r * r : 0; }},
      {"a line, ever closer", [](std::int64_t r, std::int64_t c) { return c == 0 ? 0.01 * (n - r) * (n - r) : 0; }},
  };
  std::mt19937 generator(8);
  for (const auto& [name, coordinate] : shapes) {
    Matrix rows(DType::f64, n, 4);
    std::normal_distribution<double> noise;
    rows.fill([&, at = coordinate](std::int64_t r, std::int64_t c) { return at(r, c) + noise(generator); });
    std::vector<double> condensed = Definition(rows).condensed();
    for (const double shift : {0.0, -100.0}) {  // distances may be negative, too
      for (double& d : condensed) d += shift;
      const std::vector<Merge> expected = kruskal(condensed, n);
      for (const Isa isa : cpu_info().supported) {
        const ForcedIsa forced(isa);
        SCOPED_TRACE(name);
        expect_same(linkage(condensed, Linkage::single), expected, 0);
      }
    }
  }
}

TEST(Linkage, EachArgumentWrongAlone) {
  expect_error([] { linkage(std::vector<double>{1, 2}, Linkage::single); }, {"[linkage]", "n(n-1)/2", "got 2"});
  for (const double bad : {kNaN, kInf, -kInf}) {
    expect_error([&] { linkage(std::vector<double>{1, 2, 3, 4, bad, 6}, Linkage::single); }, {"the pair (1, 3)"});
  }
  std::vector<double> many(500 * 499 / 2, 1.0);  // of these one is named that is wrong, the first
  for (const double bad : {kNaN, kInf, -kInf}) {
    many[499 + 498 + 7] = many[499 * 3] = many.back() = bad;
    for (const Linkage method : kMethods) expect_error([&] { linkage(many, method); }, {"the pair (2, 10)"});
  }
  for (const Linkage method : {Linkage::ward, Linkage::centroid}) {
    expect_error([&] { linkage(std::vector<double>{1, -2e150, 3}, method); },
                 {"[linkage] distances must be at most 1e+150 for this method, got -2e+150 for the pair (0, 2)"});
  }
  expect_error([] { linkage(std::vector<double>{1}, static_cast<Linkage>(9)); }, {"method must be", "got 9"});
  Matrix rows(DType::f32, 3, 2), empty(DType::f32, 3, 0);
  rows.fill([](std::int64_t r, std::int64_t c) { return r == 1 && c == 1 ? kNaN : 0.0; });
  expect_error([&] { linkage_rows(rows.view(), Linkage::ward); }, {"[linkage] rows must be finite", "row 1, column 1"});
  expect_error([&] { linkage_rows(empty.view(), Linkage::ward); }, {"[n >= 1, d >= 1]"});
  Matrix huge(DType::f64, 2, 1);
  huge.fill([](std::int64_t r, std::int64_t) { return r == 0 ? 1e200 : 0.0; });
  expect_error([&] { linkage_rows(huge.view(), Linkage::ward); }, {"distances must be at most", "(0, 1)"});
}

/// Takes longer than the pause between two calls, and stops at the third.
class Slow final : public Progress {
 public:
  bool update(double fraction) override {
    last = fraction;
    std::this_thread::sleep_for(std::chrono::milliseconds(101));
    return ++calls < 3;
  }
  int calls = 0;
  double last = 0.0;
};

TEST(Linkage, OfRowsCanBeStoppedBetweenMerges) {
  Matrix rows(DType::f32, 40, 3);
  rows.fill([](std::int64_t r, std::int64_t c) { return static_cast<double>((r * 7 + c * 3) % 31); });
  Slow progress;
  LinkageOptions options;
  options.progress = &progress;
  EXPECT_THROW(linkage_rows(rows.view(), Linkage::average, options), CancelledError);
  EXPECT_EQ(progress.calls, 3);
  EXPECT_GT(progress.last, 0.5);  // the distances were done
  EXPECT_LT(progress.last, 1.0);
}

}  // namespace
}  // namespace stun_ext::test
