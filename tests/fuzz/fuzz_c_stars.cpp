// SPDX-License-Identifier: Apache-2.0
// The C ABI: the star rule, and the allocation that is made by it.
#include "c_arguments.hpp"
#include "references.hpp"
#include "stun_ext/allocation.hpp"

namespace stun_ext::fuzz {
namespace {

/// Mostly ties, +Inf among them; a wrong value now and then.
void fill(Input& input, AnyMatrix& matrix) {
  for (std::int64_t i = 0; i < matrix.view().rows; ++i) {
    for (std::int64_t j = 0; j < matrix.view().cols; ++j) {
      const int value = input.ConsumeIntegralInRange(0, matrix.view().dtype == DType::i64 ? 13 : 15);
      matrix.set(i, j, value == 15 ? pick_double(input) : value == 14 ? test::kInf : value);
    }
  }
}

/// A threshold or number of clusters that the star rule ends at, and what it gives.
void run_star(Input& input) {
  const bool by_count = input.ConsumeBool();
  Call call(input, by_count ? "star_clusters_count" : "star_clusters");
  const std::int64_t n = pick_size(input, 9, 20);
  AnyMatrix matrix(input, input.ConsumeBool() ? DType::f64 : pick_dtype(input), n, n);
  fill(input, matrix);
  const auto wanted = input.ConsumeIntegralInRange<std::int64_t>(-1, 21);
  std::vector<std::int64_t> labels(static_cast<std::size_t>(n), -7);
  const std::vector<std::int64_t> before = labels;
  double threshold = pick_double(input);
  std::int64_t clusters = -7;
  const auto* distances = call.matrix(matrix);
  auto* const out_labels = n > 0 ? call.pointer(labels.data()) : nullptr;
  const std::int64_t size = call.size(n);
  if (!by_count && std::isnan(threshold)) call.set_wrong();
  if (wanted < 1) call.set_wrong();
  const double asked = threshold;
  const bool is_done =
      by_count
          ? call.succeeded(stun_ext_star_clusters_count(distances, wanted, out_labels, size, call.pointer(&threshold)))
          : call.succeeded(
                stun_ext_star_clusters(distances, threshold, wanted, out_labels, size, call.pointer(&clusters)));
  if (!is_done) {
    require(labels == before && clusters == -7, "outputs stay when arguments are refused");
    return require(std::memcmp(&threshold, &asked, sizeof asked) == 0, "a threshold stays, too");
  }
  require(distances->rows == n, "labels are as many as experts");
  require(matrix.view().dtype == DType::f32 || matrix.view().dtype == DType::f64, "of floats");
  const std::int64_t found = count_clusters(labels);
  require(found == (by_count ? wanted : clusters), "the number of clusters");
  const test::StarLabels expected = test::star_reference(upper(matrix, 0, n), threshold, wanted);
  require(labels == expected.labels, "the rule word by word");
}

void run_star_rows(Input& input) {
  Call call(input, "star_clusters_rows");
  AnyMatrix rows(input, pick_dtype(input), pick_size(input, 9, 40), pick_size(input, 6, 40));
  const std::int64_t n = rows.view().rows;
  std::vector<std::int64_t> labels(static_cast<std::size_t>(n), -7);
  const std::vector<std::int64_t> before = labels;
  std::int64_t clusters = -7;
  const double threshold = pick_double(input);
  const auto wanted = input.ConsumeIntegralInRange<std::int64_t>(-1, 41);
  const auto* of_rows = call.matrix(rows);
  const auto* options = call.pointer(call.options(1, false));
  auto* const out_labels = n > 0 ? call.pointer(labels.data()) : nullptr;
  const std::int64_t size = call.size(n);
  if (std::isnan(threshold) || (n > 0 && wanted < 1)) call.set_wrong();
  const bool is_done = call.succeeded(stun_ext_star_clusters_rows(of_rows, threshold, wanted, options, out_labels, size,
                                                                  call.pointer(&clusters), call.executor()));
  if (call.is_refused()) require(labels == before && clusters == -7, "outputs stay when arguments are refused");
  if (!is_done || of_rows->cols != rows.view().cols) return;
  test::Distances distances(static_cast<std::size_t>(n), std::vector<double>(static_cast<std::size_t>(n)));
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i + 1; j < n; ++j) {
      const long double apart = distance(rows, i, j);
      // Where float64 sums of squares round to one side of the threshold, the definition may be on the other.
      if (apart != 0.0L && (apart < 1e-140L || apart > 1e140L)) return;
      if (std::abs(apart - threshold) <= 1e-11L * apart) return;
      distances[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = static_cast<double>(apart);
    }
  }
  require(count_clusters(labels) == clusters && clusters >= wanted, "the number of clusters");
  std::vector<double> sorted;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i + 1; j < n; ++j)
      sorted.push_back(distances[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)]);
  }
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t k = 1; k < sorted.size(); ++k) {  // so does the order of what is nearly equal
    if (sorted[k] != sorted[k - 1] && sorted[k] - sorted[k - 1] <= 1e-11 * sorted[k]) return;
  }
  const bool is_exact = rows.all_of([](double value) { return value == std::floor(value) && std::abs(value) < 1e6; });
  if (!is_exact && std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) return;
  require(labels == test::star_reference(distances, threshold, wanted).labels, "the rule on distances by definition");
}

void run_allocation(Input& input) {
  Call call(input, "allocate_experts");
  std::vector<AnyMatrix> matrices;
  std::vector<stun_ext_const_matrix> layers;
  std::vector<ConstMatrixView> views;
  for (int layer = input.ConsumeIntegralInRange(0, 3); layer > 0; --layer) {
    const std::int64_t n = input.ConsumeIntegralInRange(0, 6);
    matrices.emplace_back(input, input.ConsumeBool() ? DType::f64 : pick_dtype(input), n, n);
    fill(input, matrices.back());
  }
  for (const AnyMatrix& matrix : matrices) {
    layers.push_back(call.layer(matrix));
    views.push_back({layers.back().data, layers.back().rows, layers.back().cols, layers.back().row_stride,
                     layers.back().col_stride, matrix.view().dtype});
  }
  const auto total = input.ConsumeIntegralInRange<std::int64_t>(-1, 19);
  const auto least = input.ConsumeIntegralInRange<std::int64_t>(-1, 7);
  const auto n_group = input.ConsumeBool() ? 1 : input.ConsumeIntegralInRange<std::int64_t>(-1, 4);
  const auto count = static_cast<std::int64_t>(layers.size());
  std::vector<std::int64_t> counts(layers.size(), -7);
  const std::vector<std::int64_t> before = counts;
  std::int64_t reached = -7;
  double threshold = -7;
  const auto* data = count > 0 ? call.pointer(layers.data()) : nullptr;
  const std::int64_t size = call.size(count, false);
  if (size <= 0 && data == nullptr && count > 0) return;  // an empty array may be null
  const std::int64_t counts_size = call.spoils() ? input.ConsumeIntegral<std::int64_t>() : size;
  if (counts_size != size) call.set_wrong();
  const auto* executor = call.executor();
  const bool is_done =
      call.succeeded(stun_ext_allocate_experts(data, size, total, least, n_group, counts.data(), counts_size,
                                               call.pointer(&reached), call.pointer(&threshold), executor));
  if (call.is_refused()) {
    require(counts == before && reached == -7 && threshold == -7, "outputs stay when arguments are refused");
  }
  if (!is_done) return;
  views.resize(static_cast<std::size_t>(size));
  const Allocation expected =
      allocate_experts(views, total, least, n_group);  // fuzz_star checks that by its definition
  counts.resize(static_cast<std::size_t>(size));
  require(counts == expected.counts && reached == expected.reached_total && threshold == expected.threshold,
          "the allocation");
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stun_ext::fuzz;
  Input input(data, size);
  void (*const runs[])(Input&) = {run_star, run_star_rows, run_allocation};
  runs[input.ConsumeIntegralInRange(0, 2)](input);
  return 0;
}
