// SPDX-License-Identifier: Apache-2.0
// The C ABI: distances and clusters.
#include "c_arguments.hpp"
#include "dendrogram.hpp"
#include "references.hpp"
#include "stun_ext/distance.hpp"

namespace stun_ext::fuzz {
namespace {

bool is_finite(double value) { return std::isfinite(value); }

bool is_float(DType dtype) { return dtype < DType::i64; }

std::size_t pair_of(std::int64_t n, std::int64_t i, std::int64_t j) {
  return static_cast<std::size_t>(i * (2 * n - i - 1) / 2 + j - i - 1);
}

std::vector<double> condensed_of(const AnyMatrix& rows) {
  std::vector<double> condensed;
  for (std::int64_t i = 0; i < rows.view().rows; ++i) {
    for (std::int64_t j = i + 1; j < rows.view().rows; ++j)
      condensed.push_back(static_cast<double>(distance(rows, i, j)));
  }
  return condensed;
}

/// Rows whose squared distances stay in float64, normal numbers or zero: what any method takes.
bool are_usual(const std::vector<double>& condensed) {
  return std::all_of(condensed.begin(), condensed.end(),
                     [](double value) { return value == 0.0 || (value > 1e-140 && value < 1e140); });
}

std::vector<Merge> copy_of(const std::vector<stun_ext_merge>& merges, std::int64_t count) {
  std::vector<Merge> copy;
  for (std::int64_t i = 0; i < count; ++i) {
    const stun_ext_merge& merge = merges[static_cast<std::size_t>(i)];
    copy.push_back({merge.first, merge.second, merge.height, merge.size});
  }
  return copy;
}

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

void run_condensed(Input& input) {
  Call call(input, "condensed_distances");
  const AnyMatrix rows(input, pick_dtype(input), pick_size(input, 6, 30), pick_size(input, 12, 80));
  const std::int64_t n = rows.view().rows;
  std::vector<double> out(static_cast<std::size_t>(n * (n - 1) / 2), -7.0);
  const std::vector<double> before = out;
  const auto* of_rows = call.matrix(rows);
  const std::int64_t size = call.size(static_cast<std::int64_t>(out.size()));
  const bool is_done = call.succeeded(stun_ext_condensed_distances(of_rows, out.data(), size, call.executor()));
  if (call.is_refused()) require(same_bytes(out, before), "nothing is written when arguments are refused");
  if (!is_done || of_rows->rows != n || of_rows->cols != rows.view().cols) return;
  require(rows.all_of(is_finite), "only finite rows are accepted");
  check_distances(rows, out);
}

void run_pairwise(Input& input) {
  Call call(input, "pairwise_distances");
  const AnyMatrix rows(input, pick_dtype(input), pick_size(input, 6, 30), pick_size(input, 12, 80));
  const std::int64_t n = rows.view().rows;
  const DType out_dtype = input.ConsumeBool() ? DType::f64 : pick_dtype(input);
  const AnyMatrix out(input, out_dtype, n, n, false);
  const std::vector<unsigned char> before = out.bytes();
  const std::int32_t divide = input.ConsumeBool() ? 0 : input.ConsumeIntegral<std::int32_t>();
  const auto* of_rows = call.matrix(rows);
  const auto* of_out = call.out(out);
  const bool is_done = call.succeeded(stun_ext_pairwise_distances(of_rows, divide, of_out, call.executor()));
  if (call.is_refused()) require(out.bytes() == before, "nothing is written when arguments are refused");
  const bool is_legal = n > 0 && rows.view().cols > 0 && is_float(rows.view().dtype) && rows.all_of(is_finite) &&
                        (out_dtype == DType::f64 || out_dtype == DType::f32);
  if (call.is_honest() && !call.may_end_early() && divide == 0) require(is_done == is_legal, "what is legal is done");
  if (!is_done || of_rows->rows != n || of_rows->cols != rows.view().cols) return;
  long double frobenius = 0.0L;
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < rows.view().cols; ++c)
      frobenius += static_cast<long double>(rows.get(r, c)) * rows.get(r, c);
  }
  const long double scale = divide == 0 ? 1.0L : std::sqrt(frobenius);
  const long double tolerance = out_dtype == DType::f32 ? 1e-7L : 2e-12L;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const long double expected = distance(rows, i, j);
      require(out.get(i, j) == out.get(j, i), "distances are symmetric and not NaN");
      if (expected == 0.0L && scale > 0.0L) require(out.get(i, j) == 0.0, "equal rows are at distance zero");
      if (!(expected / scale > 1e-30L && expected / scale < 1e30L && expected > 1e-140L && expected < 1e140L)) continue;
      if (scale < 1e-140L || scale > 1e140L) continue;
      require(std::abs(out.get(i, j) - expected / scale) <= tolerance * expected / scale, "the distance");
    }
  }
}

void run_mixed(Input& input) {
  const bool has_rows = input.ConsumeBool();
  Call call(input, has_rows ? "mixed_distances" : "coactivation_distances");
  const std::int64_t n = pick_size(input, 6, 20);
  const AnyMatrix rows(input, pick_dtype(input), n, pick_size(input, 6, 80));
  AnyMatrix counts(input, input.ConsumeBool() ? DType::i64 : pick_dtype(input), n, n);
  if (input.ConsumeBool()) {  // mostly symmetric with a zero diagonal, as it has to be
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) counts.set(i, j, i == j ? 0.0 : counts.get(j, i));
    }
  }
  const AnyMatrix out(input, input.ConsumeBool() ? DType::f64 : pick_dtype(input), n, n, false);
  const std::vector<unsigned char> before = out.bytes();
  const double mix = has_rows ? pick_double(input) : 1.0;
  const auto* of_rows = has_rows ? call.matrix(rows) : nullptr;
  const auto* of_counts = call.matrix(counts);
  const auto* of_out = call.out(out);
  if (!std::isfinite(mix)) call.set_wrong();
  const bool is_done =
      has_rows ? call.succeeded(stun_ext_mixed_distances(of_rows, of_counts, mix, 0, of_out, call.executor()))
               : call.succeeded(stun_ext_coactivation_distances(of_counts, of_out));
  if (call.is_refused()) require(out.bytes() == before, "nothing is written when arguments are refused");
  if (!is_done || of_counts->rows != n || of_counts->cols != n || out.view().dtype != DType::f64) return;
  if (has_rows && of_rows->cols != rows.view().cols) return;
  long double mean = 0.0L;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) mean += counts.get(i, j);
  }
  mean = std::abs(mean / static_cast<long double>(n * n));
  for (std::int64_t i = 0; i < n; ++i) {
    require(out.get(i, i) == 0.0, "the diagonal is zero");
    for (std::int64_t j = 0; j < n; ++j) {
      const long double of_pair = counts.get(i, j);
      // Sums of integers are exact; others may cancel, and then their rounding is no part of the definition.
      if (i == j || counts.view().dtype != DType::i64 || std::abs(of_pair) > 1e9L) continue;
      const long double apart = has_rows ? distance(rows, i, j) : 0.0L, together = mix * of_pair / mean;
      if (apart > 1e140L || (apart != 0.0L && apart < 1e-140L)) continue;
      if (!(std::abs(together) < 1e140L) || (together != 0.0L && std::abs(together) < 1e-140L)) continue;
      require(std::abs(out.get(i, j) - (apart - together)) <= 1e-11L * (apart + std::abs(together)), "the mixture");
    }
  }
}

void run_linkage(Input& input) {
  Call call(input, "linkage");
  const std::int64_t n = 1 + pick_size(input, 9, 30);
  std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
  const bool any_bits = input.ConsumeBool();
  for (double& value : condensed) value = any_bits ? pick_double(input) : input.ConsumeIntegralInRange(0, 5);
  std::vector<stun_ext_merge> merges(static_cast<std::size_t>(n - 1), stun_ext_merge{-7, -7, -7, -7});
  const std::vector<stun_ext_merge> before = merges;
  const std::int32_t method = call.number(input.ConsumeIntegralInRange(1, 5), 5);
  const auto* distances = call.pointer(condensed.data());
  if (n == 1 && distances == nullptr) return;  // an empty array may be null
  const std::int64_t size = call.size(static_cast<std::int64_t>(condensed.size()));
  const std::int64_t room = size == static_cast<std::int64_t>(condensed.size()) ? call.size(n - 1) : n - 1;
  const bool is_done = call.succeeded(stun_ext_linkage(distances, size, method, merges.data(), room, call.executor()));
  if (call.is_refused()) require(same_bytes(merges, before), "nothing is written when arguments are refused");
  const bool is_legal = std::all_of(condensed.begin(), condensed.end(), is_finite);
  if (call.is_honest() && !call.may_end_early() && method < STUN_EXT_WARD) {
    require(is_done == is_legal, "what is legal is done");
  }
  if (!is_done) return;
  require(is_legal, "only finite distances are accepted");
  const bool are_huge =
      std::any_of(condensed.begin(), condensed.end(), [](double value) { return std::abs(value) > 1e300; });
  if (method >= STUN_EXT_WARD || (method == STUN_EXT_AVERAGE && are_huge)) return;
  Follower(
      n, static_cast<Linkage>(method - 1), [&](std::int64_t i, std::int64_t j) { return condensed[pair_of(n, i, j)]; },
      nullptr)
      .follow(copy_of(merges, n - 1));
}

void run_linkage_rows(Input& input) {
  Call call(input, "linkage");
  const AnyMatrix rows(input, pick_dtype(input), pick_size(input, 9, 30), pick_size(input, 6, 70));
  const std::int64_t n = rows.view().rows;
  std::vector<stun_ext_merge> merges(static_cast<std::size_t>(std::max<std::int64_t>(n, 1) + 1),
                                     stun_ext_merge{-7, -7, -7, -7});
  const std::vector<stun_ext_merge> before = merges;
  const std::int32_t method = call.number(input.ConsumeIntegralInRange(1, 5), 5);
  const auto* of_rows = call.matrix(rows);
  const auto* options = call.pointer(call.options(std::max<std::int64_t>(n, 1), true));
  const std::int64_t room = call.spoils() ? input.ConsumeIntegral<std::int64_t>() : n + 1;  // more is claimed, not used
  if (room < 0) call.set_wrong();
  std::int64_t count = -7;
  auto* const out_count = call.pointer(&count);
  const bool is_done =
      call.succeeded(stun_ext_linkage_rows(of_rows, method, options, merges.data(), room, out_count, call.executor()));
  if (call.is_refused()) {
    require(same_bytes(merges, before) && count == -7, "nothing is written when arguments are refused");
  }
  if (!is_done || of_rows->rows != n || of_rows->cols != rows.view().cols) return;
  require(rows.all_of(is_finite), "only finite rows are accepted");
  require(count >= 0 && count <= room && count <= n - call.made_options().n_clusters, "it ends at n_clusters");
  for (std::int64_t i = count; i < n + 1; ++i) {
    require(merges[static_cast<std::size_t>(i)].size == -7, "merges behind those that are counted stay");
  }
  const std::vector<double> condensed = condensed_of(rows);
  if (!are_usual(condensed)) return;
  // Distances of the definition are not rounded as those of the library are: so the closest pair is known but for that.
  const std::vector<Merge> made = copy_of(merges, count);
  for (const Merge& merge : made) require(merge.height <= call.made_options().height, "it ends before the height");
  std::vector<double> exact(condensed.size());
  if (!exact.empty()) condensed_distances(rows, exact);
  Follower(
      n, static_cast<Linkage>(method - 1), [&](std::int64_t i, std::int64_t j) { return exact[pair_of(n, i, j)]; },
      &rows)
      .follow(made);
}

void run_cut_tree(Input& input) {
  Call call(input, "cut_tree");
  const std::int64_t n = input.ConsumeIntegralInRange<std::int64_t>(1, 9);
  std::vector<stun_ext_merge> merges;
  std::vector<double> open, sizes;
  for (std::int64_t i = 0; i < n; ++i) open.push_back(static_cast<double>(i)), sizes.push_back(1.0);
  for (std::int64_t i = 0, count = input.ConsumeIntegralInRange<std::int64_t>(0, n - 1); i < count; ++i) {
    double ids[2];
    for (double& id : ids) {
      const auto at = input.ConsumeIntegralInRange<std::size_t>(0, open.size() - 1);
      id = open[at];
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    }
    merges.push_back({std::min(ids[0], ids[1]), std::max(ids[0], ids[1]),
                      static_cast<double>(input.ConsumeIntegralInRange(-1, 6)),
                      sizes[static_cast<std::size_t>(ids[0])] + sizes[static_cast<std::size_t>(ids[1])]});
    sizes.push_back(merges.back().size);
    open.push_back(static_cast<double>(n + i));
    double* const fields[] = {&merges[i].first, &merges[i].second, &merges[i].height, &merges[i].size};
    if (call.spoils(60)) *fields[input.ConsumeIntegralInRange(0, 3)] = pick_double(input);
  }
  const auto size = static_cast<std::int64_t>(merges.size());
  const stun_ext_merge* const data = size > 0 ? call.pointer(merges.data()) : nullptr;
  const std::int64_t merges_size = call.size(size, false), labels_size = call.size(n, false);
  std::vector<std::int64_t> labels(static_cast<std::size_t>(n), -7);
  const std::vector<std::int64_t> before = labels;
  std::vector<bool> is_applied(merges.size());
  bool is_done;
  if (merges_size <= 0 && data == nullptr && size > 0) return;  // an empty array may be null
  if (input.ConsumeBool()) {
    const auto n_clusters = input.ConsumeIntegralInRange<std::int64_t>(-1, 10);
    is_done = call.succeeded(stun_ext_cut_tree_count(data, merges_size, n_clusters, labels.data(), labels_size));
    for (std::size_t i = 0; i < merges.size(); ++i) is_applied[i] = static_cast<std::int64_t>(i) < n - n_clusters;
  } else {
    const double height = pick_double(input);
    if (std::isnan(height)) call.set_wrong();
    is_done = call.succeeded(stun_ext_cut_tree_height(data, merges_size, height, labels.data(), labels_size));
    for (std::size_t i = 0; is_done && i < merges.size() && merges_size == size && labels_size == n; ++i) {
      is_applied[i] = merges[i].height <= height;
      for (const double id : {merges[i].first, merges[i].second}) {
        if (id >= static_cast<double>(n)) {
          is_applied[i] = is_applied[i] && is_applied[static_cast<std::size_t>(id) - static_cast<std::size_t>(n)];
        }
      }
    }
  }
  if (!is_done) return require(labels == before, "labels stay when arguments are refused");
  if (merges_size != size || labels_size != n) return;
  require(labels == labels_of(copy_of(merges, size), static_cast<std::size_t>(n), is_applied), "the clusters");
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stun_ext::fuzz;
  Input input(data, size);
  void (*const runs[])(Input&) = {run_condensed, run_pairwise, run_mixed, run_linkage, run_linkage_rows, run_cut_tree};
  runs[input.ConsumeIntegralInRange(0, 5)](input);
  return 0;
}
