// SPDX-License-Identifier: Apache-2.0
#include "dendrogram.hpp"
#include "references.hpp"
#include "stun_ext/distance.hpp"

namespace stun_ext::fuzz {
namespace {

bool is_finite(double value) { return std::isfinite(value); }

std::size_t pair_of(std::int64_t n, std::int64_t i, std::int64_t j) {
  return static_cast<std::size_t>(i * (2 * n - i - 1) / 2 + j - i - 1);
}

Linkage pick_method(Input& input) { return static_cast<Linkage>(input.ConsumeIntegralInRange(0, 5)); }

void run_condensed(Input& input) {
  const std::int64_t n = 1 + pick_size(input, 9, 40);
  std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
  const bool any_bits = input.ConsumeBool();
  for (double& value : condensed) value = any_bits ? pick_double(input) : input.ConsumeIntegralInRange(0, 5);
  const Linkage method = pick_method(input);
  Splitting executor(input);
  const std::size_t size = input.ConsumeIntegralInRange(0, 15) == 0 ? condensed.size() / 2 : condensed.size();
  std::vector<Merge> merges;
  const bool is_done =
      accepts("linkage", [&] { merges = linkage(Span<const double>(condensed.data(), size), method, executor); });
  if (!is_done || size != condensed.size()) return;
  require(std::all_of(condensed.begin(), condensed.end(), is_finite), "only finite distances are accepted");
  require(static_cast<std::int64_t>(merges.size()) == n - 1, "all observations are merged");
  if (method >= Linkage::ward) {  // these have no meaning without rows, but make a dendrogram
    std::vector<std::int64_t> labels(static_cast<std::size_t>(n));
    cut_tree_count(merges, 1, labels);
    return;
  }
  const auto is_huge = [](double value) {
    return std::abs(value) > 1e300;
  };  // their sums, which average needs, overflow
  if (method == Linkage::average && std::any_of(condensed.begin(), condensed.end(), is_huge)) return;
  Follower(
      n, method, [&](std::int64_t i, std::int64_t j) { return condensed[pair_of(n, i, j)]; }, nullptr)
      .follow(merges);
}

void run_rows(Input& input) {
  AnyMatrix rows(input, pick_dtype(input), pick_size(input, 9, 40), pick_size(input, 6, 40));
  const MatrixView view = maybe_spoilt(input, rows.view());
  const Linkage method = pick_method(input);
  LinkageOptions options;
  options.n_clusters = input.ConsumeBool() ? 1 : input.ConsumeIntegralInRange<std::int64_t>(-1, 12);
  if (input.ConsumeBool()) options.height = pick_double(input);
  if (input.ConsumeBool()) options.memory_limit = input.ConsumeIntegralInRange<std::int64_t>(-1, 400000);
  if (input.ConsumeIntegralInRange(0, 31) == 0) options.memory_limit = input.ConsumeIntegral<std::int64_t>();
  Splitting executor(input);
  std::vector<Merge> merges;
  const bool is_done = accepts("linkage", [&] {
    at_every_isa([&] {
      merges = linkage_rows(view, method, options, executor);
      std::vector<double> values;
      for (const Merge& merge : merges)
        values.insert(values.end(), {merge.first, merge.second, merge.height, merge.size});
      return values;
    });
  });
  if (!is_done || view.rows != rows.view().rows || view.cols != rows.view().cols) return;
  require(rows.all_of(is_finite), "only finite rows are accepted");
  const std::int64_t n = view.rows;
  require(static_cast<std::int64_t>(merges.size()) <= n - options.n_clusters, "it ends at n_clusters");
  for (const Merge& merge : merges) require(merge.height <= options.height, "it ends before the height");
  std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
  condensed_distances(view, condensed);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i + 1; j < n; ++j) {
      const long double value = distance(rows, i, j);
      if (method == Linkage::average && value > 1e300L) return;
      // Squares of these are what Ward and centroid follow: they may underflow, and then equal rows that are none.
      if (method >= Linkage::ward && value != 0.0L && (value < 1e-140L || value > 1e140L)) return;
    }
  }
  Follower(
      n, method, [&](std::int64_t i, std::int64_t j) { return condensed[pair_of(n, i, j)]; }, &rows)
      .follow(merges);
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  if (input.ConsumeBool()) {
    stun_ext::fuzz::run_condensed(input);
  } else {
    stun_ext::fuzz::run_rows(input);
  }
  return 0;
}
