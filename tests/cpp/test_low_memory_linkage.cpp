// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/error.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

using test::expect_error;
using test::ForcedIsa;
using test::Matrix;
using test::Threads;

constexpr Linkage kMethods[] = {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward, Linkage::centroid};
constexpr const char* kNames[] = {"single", "complete", "average", "ward", "centroid"};

/// A limit that the matrix of n rows does not fit, with little room for anything else. Average linkage has distances
/// between all rows of two clusters at a time, in each thread.
LinkageOptions tight(std::int64_t n, Linkage method, std::int64_t extra = 0, int threads = num_threads()) {
  LinkageOptions options;
  options.memory_limit = 65536 + 168 * n + 180000 + extra;
  if (method == Linkage::average) options.memory_limit += threads * 8 * std::min<std::int64_t>(n * n / 4, 1 << 16);
  return options;
}

/// Runs a range for each item, which is shorter than it has to be.
class OneByOne final : public Executor {
 public:
  int concurrency() const noexcept override { return 1; }
  void parallel_for(std::int64_t count, std::int64_t, RangeTask task) override {
    for (std::int64_t k = 0; k < count; ++k) task(k, k + 1);
  }
};

void expect_same(const std::vector<Merge>& actual, const std::vector<Merge>& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].first, expected[i].first)
        << what << ", merge " << i << " at " << actual[i].height << " and " << expected[i].height;
    ASSERT_EQ(actual[i].second, expected[i].second) << what << ", merge " << i;
    ASSERT_NEAR(actual[i].height, expected[i].height, tolerance * (1.0 + expected[i].height))
        << what << ", merge " << i;
    ASSERT_EQ(actual[i].size, expected[i].size) << what << ", merge " << i;
  }
}

Matrix clustered(std::int64_t n, std::int64_t d, double spread, unsigned seed, DType dtype = DType::f32) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const std::int64_t centers = 1 + n / 20;
  std::vector<double> center(static_cast<std::size_t>(centers * d));
  for (double& value : center) value = normal(generator);
  Matrix rows(dtype, n, d);
  rows.fill([&](std::int64_t r, std::int64_t c) {
    return center[static_cast<std::size_t>((r * 7 % centers) * d + c)] + spread * normal(generator);
  });
  return rows;
}

TEST(LowMemoryLinkage, EqualsTheMatrixOnRandomRows) {
  for (const std::int64_t n : {400, 700}) {
    for (const std::int64_t d : {3, 40}) {
      for (const double spread : {0.05, 1.0, 30.0}) {
        const Matrix rows = clustered(n, d, spread, static_cast<unsigned>(n + d));
        for (const Linkage method : kMethods) {
          const std::string what = std::string(kNames[static_cast<int>(method)]) + " n=" + std::to_string(n) +
                                   " d=" + std::to_string(d) + " spread=" + std::to_string(spread);
          expect_same(linkage_rows(rows.view(), method, tight(n, method)), linkage_rows(rows.view(), method), 1e-9,
                      what);
        }
      }
    }
  }
}

TEST(LowMemoryLinkage, EqualsTheMatrixOnTies) {
  std::mt19937 generator(5);
  for (const int values : {2, 3, 6}) {
    const std::int64_t n = 600, d = values == 6 ? 2 : 5;
    Matrix rows(DType::bf16, n, d);
    std::uniform_int_distribution<int> pick(0, values - 1);
    rows.fill([&](std::int64_t, std::int64_t) { return pick(generator); });
    for (const Linkage method : kMethods) {
      const std::string what = std::string(kNames[static_cast<int>(method)]) + " values=" + std::to_string(values);
      expect_same(linkage_rows(rows.view(), method, tight(n, method, 600000)), linkage_rows(rows.view(), method), 1e-12,
                  what);
    }
  }
}

TEST(LowMemoryLinkage, SameBitsForEveryIsaAndThreadCount) {
  const std::int64_t n = 500, d = 33;
  const Matrix rows = clustered(n, d, 0.7, 3, DType::bf16);
  for (const Linkage method : kMethods) {
    // The least memory depends on the number of threads: room for seven.
    const LinkageOptions options = tight(n, method, 250000, 7);
    std::vector<Merge> first;
    {
      const ForcedIsa forced(Isa::scalar);
      const Threads threads(1);
      first = linkage_rows(rows.view(), method, options);
    }
    for (const Isa isa : cpu_info().supported) {
      const ForcedIsa forced(isa);
      for (const int count : {1, 2, 7}) {
        const Threads threads(count);
        const std::vector<Merge> merges = linkage_rows(rows.view(), method, options);
        expect_same(merges, first, method == Linkage::ward || method == Linkage::centroid ? 1e-12 : 0.0,
                    std::string(kNames[static_cast<int>(method)]) + " " + name_of(isa));
      }
    }
  }
}

TEST(LowMemoryLinkage, EqualsTheMatrixOnManyColumns) {
  // Enough for products by tiles, where the processor has them.
  const std::int64_t n = 900, d = 170, distinct = 180;
  const Matrix rows = clustered(n, d, 0.7, 4);
  Matrix tied(DType::f32, n, d);
  tied.fill([&](std::int64_t r, std::int64_t c) { return rows.get(r * 11 % distinct, c); });
  for (const Linkage method : kMethods) {
    for (const Matrix* matrix : {&rows, static_cast<const Matrix*>(&tied)}) {
      const std::vector<Merge> expected = linkage_rows(matrix->view(), method);
      const Threads threads(3);
      expect_same(linkage_rows(matrix->view(), method, tight(n, method, 1000000, 3)), expected, 1e-9,
                  kNames[static_cast<int>(method)]);
    }
  }
}

TEST(LowMemoryLinkage, TakesEveryLayoutAndType) {
  const std::int64_t n = 400, d = 9;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
    const Matrix plain = clustered(n, d, 0.5, 8, dtype);
    for (const test::Layout layout : test::kLayouts) {
      Matrix rows(dtype, n, d, layout);
      rows.fill([&](std::int64_t r, std::int64_t c) { return plain.get(r, c); });
      for (const Linkage method : {Linkage::complete, Linkage::ward}) {
        expect_same(linkage_rows(rows.view(), method, tight(n, method)), linkage_rows(plain.view(), method), 1e-9,
                    name_of(dtype));
      }
    }
  }
}

TEST(LowMemoryLinkage, EndsEarlyWhereAsked) {
  const std::int64_t n = 500;
  const Matrix rows = clustered(n, 12, 0.6, 4);
  for (const Linkage method : kMethods) {
    const std::vector<Merge> all = linkage_rows(rows.view(), method);
    for (const std::int64_t k : {1, 7, 250, 499, 500}) {
      LinkageOptions options = tight(n, method);
      options.n_clusters = k;
      expect_same(linkage_rows(rows.view(), method, options), std::vector<Merge>(all.begin(), all.begin() + (n - k)),
                  1e-9, std::to_string(k));
      options.memory_limit = 0;
      EXPECT_EQ(linkage_rows(rows.view(), method, options).size(), static_cast<std::size_t>(n - k));
    }
    for (const std::size_t at : {std::size_t{0}, std::size_t{100}, std::size_t{490}}) {
      LinkageOptions options = tight(n, method);
      options.height = 0.5 * (all[at].height + all[at + 1].height);
      std::size_t expected = 0;
      while (expected < all.size() && all[expected].height <= options.height) ++expected;
      expect_same(linkage_rows(rows.view(), method, options),
                  std::vector<Merge>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(expected)), 1e-9, "height");
    }
  }
}

class Stopping final : public Progress {
 public:
  explicit Stopping(int calls) : calls_(calls) {}
  bool update(double fraction) override {
    EXPECT_GE(fraction, last_);
    EXPECT_LE(fraction, 1.0);
    last_ = fraction;
    return --calls_ > 0;
  }

 private:
  int calls_;
  double last_ = 0.0;
};

TEST(LowMemoryLinkage, CanBeStopped) {
  const std::int64_t n = 900;
  const Matrix rows = clustered(n, 60, 1.0, 6);
  Stopping progress(1);
  LinkageOptions options = tight(n, Linkage::complete);
  options.progress = &progress;
  EXPECT_THROW(linkage_rows(rows.view(), Linkage::complete, options), CancelledError);
}

TEST(LowMemoryLinkage, RefusesWhatCannotBe) {
  std::vector<std::int64_t> labels(600);
  const Matrix rows = clustered(400, 5, 1.0, 2);
  LinkageOptions options;
  options.memory_limit = 1000;
  expect_error([&] { linkage_rows(rows.view(), Linkage::ward, options); },
               {"[linkage] memory_limit must be at least", "400 rows of 5 columns, got 1000"});
  options.memory_limit = -1;
  expect_error([&] { linkage_rows(rows.view(), Linkage::ward, options); }, {"memory_limit must not be negative"});
  options = {};
  options.n_clusters = 401;
  expect_error([&] { linkage_rows(rows.view(), Linkage::ward, options); }, {"n_clusters must be in [1, 400], got 401"});
  options = {};
  options.height = test::kNaN;
  expect_error([&] { linkage_rows(rows.view(), Linkage::ward, options); }, {"height must not be NaN"});
  Matrix huge(DType::f64, 600, 3);
  huge.fill([](std::int64_t r, std::int64_t) { return r == 7 ? 1e200 : 1.0; });
  for (const Linkage method : kMethods) {
    expect_error([&] { linkage_rows(huge.view(), method, tight(600, method)); }, {"distances must be at most 1e+150"});
    OneByOne executor;
    expect_error([&] { linkage_rows(huge.view(), method, tight(600, method), executor); },
                 {"distances must be at most 1e+150"});
  }
  expect_error([&] { star_clusters_rows(huge.view(), 1, 1, labels); }, {"distances must be at most 1e+150"});
  Matrix equal(DType::f32, 600, 3);
  equal.fill([](std::int64_t, std::int64_t c) { return static_cast<double>(c); });
  expect_error([&] { linkage_rows(equal.view(), Linkage::complete, tight(600, Linkage::complete)); },
               {"must hold all pairs that tie for the smallest distance, 0"});
}

TEST(StarClustersRows, EqualsTheRuleOnTheMatrix) {
  for (const double spread : {0.05, 0.8, 5.0}) {
    const std::int64_t n = 400;
    const Matrix rows = clustered(n, 20, spread, 9);
    std::vector<double> matrix(static_cast<std::size_t>(n * n));
    const MatrixView view = {matrix.data(), n, n, n, 1, DType::f64};
    pairwise_distances(rows.view(), false, view);
    std::vector<double> sorted = matrix;
    std::sort(sorted.begin(), sorted.end());
    for (const double share : {0.01, 0.2, 0.9}) {
      const double threshold = sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size()))];
      for (const std::int64_t least : {1, 350}) {
        std::vector<std::int64_t> expected(static_cast<std::size_t>(n)), actual(expected.size());
        const std::int64_t count = star_clusters(view, threshold, least, expected);
        EXPECT_EQ(star_clusters_rows(rows.view(), threshold, least, actual), count);
        EXPECT_EQ(actual, expected) << spread << ' ' << share;
      }
    }
  }
}

TEST(StarClustersRows, EachArgumentWrongAlone) {
  const Matrix rows = clustered(400, 5, 1.0, 2);
  std::vector<std::int64_t> labels(400), few(3);
  expect_error([&] { star_clusters_rows(rows.view(), test::kNaN, 1, labels); }, {"threshold must not be NaN"});
  expect_error([&] { star_clusters_rows(rows.view(), 1, 0, labels); }, {"min_clusters must be in [1, 400], got 0"});
  expect_error([&] { star_clusters_rows(rows.view(), 1, 1, few); }, {"one value for each of the 400 rows, got 3"});
  LinkageOptions options;
  options.n_clusters = 2;
  expect_error([&] { star_clusters_rows(rows.view(), 1, 1, labels, options); }, {"use min_clusters"});
  options = {};
  options.memory_limit = 320000;
  expect_error([&] { star_clusters_rows(rows.view(), 100, 1, labels, options); },
               {"must hold all pairs below the threshold"});
}

}  // namespace
}  // namespace stun_ext
