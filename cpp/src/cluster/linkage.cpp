// SPDX-License-Identifier: Apache-2.0
#include "kernels/linkage.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "check.hpp"
#include "cluster/agglomerate.hpp"
#include "cluster/condensed_single.hpp"
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

// From here on reading the distances once is faster than putting them into a square.
constexpr std::int64_t kReadOnceFrom = 512;

[[noreturn]] void refuse(Span<const double> condensed, std::int64_t n, double highest) {
  const double* distance = condensed.data();
  std::int64_t i = 0, j = 1;
  for (; std::abs(*distance) <= highest; ++distance) {
    if (++j == n) j = ++i + 1;
  }
  if (std::isfinite(*distance)) {
    detail::fail(kOperation, "distances must be at most ", highest, " for this method, got ", *distance,
                 " for the pair (", i, ", ", j, ")");
  }
  detail::fail(kOperation, "distances must be finite, got ", *distance, " for the pair (", i, ", ", j, ")");
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
  if (method == Linkage::single && n >= kReadOnceFrom) {
    std::vector<Merge> merges;
    switch (detail::condensed_single(condensed, n, highest, merges)) {
      case detail::CondensedSingle::done:
        return merges;
      case detail::CondensedSingle::beyond:
        refuse(condensed, n, highest);
      case detail::CondensedSingle::tied:
        break;
    }
  }
  detail::ClusterDistances distances(n);
  std::atomic<bool> is_within{true};
  auto copy = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const double* from = condensed.data() + i * (2 * n - i - 1) / 2;
      if (!kernels.copy_within(from, n - i - 1, highest, distances.row(i) + i + 1)) is_within = false;
    }
  };
  executor.parallel_for(n, n < detail::kParallelFrom ? n : detail::rows_per_task(n), copy);
  if (!is_within) refuse(condensed, n, highest);
  detail::Ticker untold(kOperation, nullptr);
  return detail::agglomerate(std::move(distances), detail::Clusters::singletons(n), method, {}, executor, untold);
}

}  // namespace stun_ext
