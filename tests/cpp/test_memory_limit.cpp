// SPDX-License-Identifier: Apache-2.0
// A memory_limit is one: what a clustering of rows allocates at any time, beside its result, stays within it.
#include <algorithm>
#include <cstdlib>

#include "counted_memory.hpp"
#include "stun_ext/cluster.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

enum class Kind { gaussian, clustered, whole_numbers };
constexpr const char* kKinds[] = {"gaussian", "clustered", "whole numbers"};
constexpr const char* kMethods[] = {"single", "complete", "average", "ward", "centroid"};

Matrix rows_of(Kind kind, std::int64_t n, std::int64_t d) {
  std::mt19937 generator(1);
  std::normal_distribution<double> normal;
  std::vector<double> centers(static_cast<std::size_t>(40 * d));
  for (double& value : centers) value = normal(generator);
  Matrix rows(DType::f32, n, d);
  rows.fill([&](std::int64_t r, std::int64_t c) {
    if (kind == Kind::gaussian) return normal(generator);
    if (kind == Kind::clustered) return centers[static_cast<std::size_t>(r % 40 * d + c)] + 0.1 * normal(generator);
    return static_cast<double>(generator() % 3);  // of which many pairs are at the same distance
  });
  return rows;
}

/// The lowest limit that a call takes: its message for a lower one says it.
template <class Call>
std::int64_t lowest_limit(Call&& call) {
  try {
    call(1);
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what(), before = "memory_limit must be at least ";
    const std::size_t at = message.find(before);
    EXPECT_NE(at, std::string::npos) << message;
    return std::atoll(message.c_str() + at + before.size());
  }
  ADD_FAILURE() << "a byte was enough";
  return 0;
}

/// call(limit) with limits from the lowest to more than any of it needs; `result`: bytes that it returns.
template <class Call>
void expect_within_limits(const std::string& what, Call&& call, std::int64_t result) {
  const std::int64_t lowest = lowest_limit(call);
  for (const double factor : {1.0, 1.3, 3.0, 20.0, 100.0}) {
    const auto limit = static_cast<std::int64_t>(factor * static_cast<double>(lowest));
    const std::int64_t before = live_bytes();
    restart_peak();
    call(limit);
    EXPECT_LE(peak_bytes() - before, limit + result) << what << ", " << factor << " times the lowest limit";
    EXPECT_GT(peak_bytes() - before, 0) << "it is counted";
  }
}

void expect_linkage_within_limits(Kind kind, std::int64_t n, std::int64_t d) {
  const Matrix rows = rows_of(kind, n, d);
  for (int method = 0; method < 5; ++method) {
    for (const int threads : {1, 2}) {
      const Threads scope(threads);
      const std::string what = std::string(kMethods[method]) + ", " + kKinds[static_cast<int>(kind)] + ", " +
                               std::to_string(threads) + " thread(s)";
      const auto cluster = [&](std::int64_t limit) {
        LinkageOptions options;
        options.memory_limit = limit;
        ASSERT_EQ(static_cast<std::int64_t>(linkage_rows(rows.view(), static_cast<Linkage>(method), options).size()),
                  n - 1);
      };
      expect_within_limits(what, cluster, (n - 1) * static_cast<std::int64_t>(sizeof(Merge)));
    }
  }
}

TEST(MemoryLimit, HoldsForGaussianRows) { expect_linkage_within_limits(Kind::gaussian, 900, 64); }

TEST(MemoryLimit, HoldsForClusteredRows) { expect_linkage_within_limits(Kind::clustered, 1200, 64); }

TEST(MemoryLimit, HoldsForTiedDistances) { expect_linkage_within_limits(Kind::whole_numbers, 600, 16); }

TEST(MemoryLimit, HoldsForFewWideRows) { expect_linkage_within_limits(Kind::clustered, 150, 2000); }

TEST(MemoryLimit, HoldsForTheStarRule) {
  for (const Kind kind : {Kind::gaussian, Kind::clustered, Kind::whole_numbers}) {
    const std::int64_t n = 900, d = 16;
    const Matrix rows = rows_of(kind, n, d);
    for (const int threads : {1, 2}) {
      const Threads scope(threads);
      std::vector<std::int64_t> labels(static_cast<std::size_t>(n));
      const double threshold = kind == Kind::clustered ? 0.5 : kind == Kind::gaussian ? 4.5 : 3.5;
      const auto cluster = [&](std::int64_t limit) {
        LinkageOptions options;
        options.memory_limit = limit;
        try {
          star_clusters_rows(rows.view(), threshold, 1, labels, options);
        } catch (const std::invalid_argument& error) {  // all pairs have to be held, which is what some limits do not
          if (std::string(error.what()).find("must hold all pairs") == std::string::npos) throw;
        }
      };
      expect_within_limits(std::string("star, ") + kKinds[static_cast<int>(kind)], cluster, 0);
    }
  }
}

}  // namespace
}  // namespace stun_ext::test
