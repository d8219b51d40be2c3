// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "check.hpp"
#include "cluster/agglomerate.hpp"
#include "cluster/ticker.hpp"
#include "distance/distance.hpp"
#include "low_memory/low_memory_linkage.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace {

constexpr const char* kOperation = "linkage";

// Without a limit: the n×n matrix up to here, and rounds with half of it beyond.
constexpr double kMatrixUpTo = 2.5 * (1 << 30);

void check_options(const LinkageOptions& options, std::int64_t n) {
  if (options.n_clusters < 1 || options.n_clusters > n) {
    detail::fail(kOperation, "n_clusters must be in [1, ", n, "], got ", options.n_clusters);
  }
  if (std::isnan(options.height)) detail::fail(kOperation, "height must not be NaN");
  detail::check_memory_limit(kOperation, options.memory_limit);
}

/// Whether all distances may be held at once. Shapes that there are no distances of are refused behind this.
bool matrix_fits(const ConstMatrixView& rows, std::int64_t memory_limit, int threads) noexcept {
  constexpr std::int64_t kMostRows = std::int64_t{1} << 30;  // MemoryPlan refuses more
  if (rows.rows < 1 || rows.cols < 1) return true;
  if (rows.rows > kMostRows) return false;
  const double matrix = detail::ClusterDistances::bytes(rows.rows);
  if (memory_limit <= 0) return matrix <= kMatrixUpTo;
  return matrix + detail::AllDistances::bytes(rows, threads) <= static_cast<double>(memory_limit);
}

}  // namespace

std::vector<Merge> linkage_rows(ConstMatrixView rows, Linkage method, const LinkageOptions& options,
                                Executor& executor) {
  detail::check_method(method);
  check_options(options, std::max<std::int64_t>(rows.rows, 1));
  const std::int64_t n = rows.rows;
  const bool fits = matrix_fits(rows, options.memory_limit, executor.concurrency());
  const detail::Stop stop = {options.n_clusters, options.height};
  detail::Ticker ticker(kOperation, options.progress);
  if (!fits) {
    const double usual = std::max(0.5 * kMatrixUpTo, 1024.0 * static_cast<double>(n));
    const detail::MemoryPlan plan =
        detail::MemoryPlan::of(kOperation, options.memory_limit, usual, rows, method, executor.concurrency());
    detail::check_rows(kOperation, rows, executor);
    return detail::low_memory_linkage(rows, method, plan, stop, executor, ticker);
  }

  const double most = detail::highest_distance(method);
  auto all = std::make_unique<detail::AllDistances>(kOperation, rows, executor);
  detail::ClusterDistances distances(n);
  std::atomic<std::int64_t> done{0};
  const double pairs = 0.5 * static_cast<double>(n) * static_cast<double>(n);
  ticker.set_span(0.0, 0.5);
  auto sink = [&](const detail::DistanceTile& tile) {
    tile.for_each([&](std::int64_t i, std::int64_t j, double distance) {
      if (!(distance <= most)) {
        detail::fail(kOperation, "distances must be at most ", most, " for this method, got ", distance,
                     " for the pair (", i, ", ", j, ")");
      }
      distances.set(i, j, distance);
    });
    ticker.tick(static_cast<double>(done.fetch_add(tile.i_rows * tile.j_rows)) / pairs);
  };
  all->for_each(sink);
  all.reset();  // its memory
  ticker.set_span(0.5, 1.0);
  return detail::agglomerate(std::move(distances), detail::Clusters::singletons(n), method, stop, executor, ticker);
}

}  // namespace stun_ext
