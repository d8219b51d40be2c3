// SPDX-License-Identifier: Apache-2.0
#include "kernels/linkage.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "check.hpp"
#include "cluster/agglomerate.hpp"
#include "dispatch.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext {
namespace {

constexpr const char* kOperation = "linkage";

/// The n with n(n−1)/2 = size; 0 if there is none.
std::int64_t observations_of(std::size_t size) noexcept {
  auto n = static_cast<std::int64_t>(std::llround((1.0 + std::sqrt(1.0 + 8.0 * static_cast<double>(size))) / 2.0));
  return static_cast<std::size_t>(n * (n - 1) / 2) == size ? n : 0;
}

[[noreturn]] void refuse(const double* row, std::int64_t i, std::int64_t n, double highest) {
  std::int64_t j = i + 1;
  while (j + 1 < n && std::abs(row[j]) <= highest) ++j;
  if (std::isfinite(row[j])) {
    detail::fail(kOperation, "distances must be at most ", highest, " for this method, got ", row[j], " for the pair (",
                 i, ", ", j, ")");
  }
  detail::fail(kOperation, "distances must be finite, got ", row[j], " for the pair (", i, ", ", j, ")");
}

}  // namespace

void detail::check_method(Linkage method) {
  if (static_cast<unsigned>(method) > static_cast<unsigned>(Linkage::centroid)) {
    fail(kOperation, "method must be single, complete, average, ward or centroid, got ", static_cast<unsigned>(method));
  }
}

std::vector<Merge> linkage(Span<const double> condensed, Linkage method, Executor& executor) {
  detail::check_method(method);
  const std::int64_t n = observations_of(condensed.size());
  if (n == 0) {
    detail::fail(kOperation, "condensed distances must be n(n-1)/2 values for an n >= 1, got ", condensed.size());
  }
  const detail::LinkageKernels& kernels = STUN_EXT_KERNELS(linkage);
  const double highest = detail::highest_distance(method);
  detail::ClusterDistances distances(n);
  std::atomic<std::int64_t> first_bad{n};
  auto copy = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const double* from = condensed.data() + i * (2 * n - i - 1) / 2;
      if (kernels.copy_within(from, n - i - 1, highest, distances.row(i) + i + 1)) continue;
      for (std::int64_t lowest = first_bad.load(); i < lowest && !first_bad.compare_exchange_weak(lowest, i);) {
      }
    }
  };
  executor.parallel_for(n, n < detail::kParallelFrom ? n : detail::rows_per_task(n), copy);
  if (first_bad.load() < n) refuse(distances.row(first_bad.load()), first_bad.load(), n, highest);
  detail::Ticker untold(kOperation, nullptr);
  return detail::agglomerate(std::move(distances), detail::Clusters::singletons(n), method, {}, executor, untold);
}

}  // namespace stun_ext
