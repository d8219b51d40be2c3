// SPDX-License-Identifier: Apache-2.0
// No allocation in hot loops: the number of allocations of a call does not grow with the work.
#include "counted_memory.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/saliency.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

/// Of one call after another that has warmed up what is kept for good.
template <class Call>
std::int64_t allocations_of(Call&& call) {
  call();
  const std::int64_t before = allocations();
  call();
  return allocations() - before;
}

/// `of(size)` is a call on that size: with more work buffers may double a few times more often, and each thread may
/// take a few more tasks, with their workspaces; but a multiple of the work is not a multiple of the allocations.
template <class Of>
void expect_no_growth(const char* name, Of&& of, std::int64_t size, std::int64_t factor) {
  for (const int threads : {1, 2}) {
    const Threads scope(threads);
    const std::int64_t few = allocations_of(of(size));
    const std::int64_t many = allocations_of(of(size * factor));
    EXPECT_LE(many, few + 40 * threads) << name << " on " << threads << " thread(s): " << few << " allocations for "
                                        << size << ", " << many << " for " << size * factor;
  }
}

constexpr std::int64_t kCols = 512;

Matrix normal(DType dtype, std::int64_t rows, std::int64_t cols, Layout layout = Layout::row_major) {
  std::mt19937 generator(1);
  Matrix matrix(dtype, rows, cols, layout);
  matrix.fill([&](std::int64_t, std::int64_t) { return static_cast<double>(generator() % 1000) - 500.0; });
  return matrix;
}

TEST(Memory, DistancesAllocateAsOftenForMoreRows) {
  const auto pairwise = [](std::int64_t n) {
    return [rows = normal(DType::bf16, n, 300), out = Matrix(DType::f32, n, n)]() mutable {
      pairwise_distances(rows.view(), true, out.view());
    };
  };
  expect_no_growth("pairwise_distances", pairwise, 100, 8);
}

TEST(Memory, MasksAllocateAsOftenForMoreRows) {
  for (const Layout layout : {Layout::row_major, Layout::transposed}) {
    const DType dtype = layout == Layout::row_major ? DType::f32 : DType::bf16;
    const auto scores = [&](std::int64_t n) {
      return [weight = normal(dtype, n, kCols, layout), norm = std::vector<float>(kCols, 2.0f),
              out = Matrix(DType::f32, n, kCols)]() mutable { wanda_scores(weight.view(), norm, out.view()); };
    };
    const auto mask = [&](std::int64_t n) {
      return [weight = normal(dtype, n, kCols, layout), norm = std::vector<float>(kCols, 2.0f),
              counts = std::vector<std::int64_t>(static_cast<std::size_t>(n), 200),
              mask = std::vector<std::uint8_t>(static_cast<std::size_t>(n * kCols)),
              n]() mutable { wanda_mask(weight.view(), norm, counts, {mask.data(), n, kCols, kCols}); };
    };
    const auto prune = [&](std::int64_t n) {
      return [weight = normal(dtype, n, kCols, layout), norm = std::vector<float>(kCols, 2.0f),
              counts = std::vector<std::int64_t>(static_cast<std::size_t>(n), 200)]() mutable {
        wanda_prune(weight.view(), norm, counts);
      };
    };
    const auto nm = [&](std::int64_t n) {
      return [weight = normal(dtype, n, kCols, layout),
              mask = std::vector<std::uint8_t>(static_cast<std::size_t>(n * kCols)),
              n]() mutable { nm_mask(weight.view(), 2, 4, {mask.data(), n, kCols, kCols}); };
    };
    const auto apply = [&](std::int64_t n) {
      return [weight = normal(dtype, n, kCols, layout),
              mask = std::vector<std::uint8_t>(static_cast<std::size_t>(n * kCols), 1),
              n]() mutable { apply_mask(weight.view(), {mask.data(), n, kCols, kCols}); };
    };
    expect_no_growth("wanda_scores", scores, 256, 32);
    expect_no_growth("wanda_mask", mask, 256, 32);
    expect_no_growth("wanda_prune", prune, 256, 32);
    expect_no_growth("nm_mask", nm, 256, 32);
    expect_no_growth("apply_mask", apply, 256, 32);
  }
}

TEST(Memory, ClusteringAllocatesAsOftenForMoreRows) {
  for (const Linkage method :
       {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward, Linkage::centroid}) {
    const auto of_rows = [&](std::int64_t n) {
      return [rows = normal(DType::f32, n, 20), method]() { linkage_rows(rows.view(), method); };
    };
    expect_no_growth("linkage_rows", of_rows, 100, 8);
    if (method == Linkage::ward || method == Linkage::centroid) continue;
    const auto of_condensed = [&](std::int64_t n) {
      std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
      condensed_distances(normal(DType::f32, n, 20).view(), condensed);
      return [condensed, method]() { linkage(condensed, method); };
    };
    expect_no_growth("linkage", of_condensed, 100, 8);
  }
}

TEST(Memory, StarRuleAllocatesByItsClustersAlone) {
  const auto of_rows = [](std::int64_t n) {
    Matrix distances(DType::f64, n, n);
    pairwise_distances(normal(DType::f32, n, 20).view(), false, distances.view());
    return [distances, labels = std::vector<std::int64_t>(static_cast<std::size_t>(n))]() mutable {
      star_clusters(distances.view(), 0.0, 1, labels);
    };
  };
  const std::int64_t few = allocations_of(of_rows(100)), many = allocations_of(of_rows(800));
  EXPECT_LE(many, few + 800 + 100);
}

}  // namespace
}  // namespace stun_ext::test
