// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/cluster.hpp"

#include <algorithm>
#include <vector>

#include "arguments.hpp"
#include "callbacks.hpp"
#include "status.hpp"
#include "stun_ext/allocation.hpp"
#include "stun_ext/stun_ext.h"

namespace stun_ext::c {
namespace {

std::vector<Merge> merges_of(const char* operation, const stun_ext_merge* merges, std::int64_t merges_size) {
  std::vector<Merge> copy;
  for (const stun_ext_merge& merge : span(operation, "merges", merges, merges_size)) {
    copy.push_back({merge.first, merge.second, merge.height, merge.size});
  }
  return copy;
}

void copy(const std::vector<Merge>& from, stun_ext_merge* to) {
  std::transform(from.begin(), from.end(), to, [](const Merge& merge) {
    return stun_ext_merge{merge.first, merge.second, merge.height, merge.size};
  });
}

}  // namespace
}  // namespace stun_ext::c

using namespace stun_ext;

stun_ext_status stun_ext_linkage(const double* condensed, int64_t condensed_size, stun_ext_linkage_method method,
                                 stun_ext_merge* merges, int64_t merges_size,
                                 const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "linkage";
    c::CallerExecutor runs_on(kOperation, executor);
    const auto distances = c::span(kOperation, "condensed", condensed, condensed_size);
    const auto out = c::span(kOperation, "merges", merges, merges_size);
    const auto size = static_cast<double>(merges_size);  // a real number: the product can be beyond the integers
    if (0.5 * size * (size + 1.0) != static_cast<double>(condensed_size)) {
      c::refuse(kOperation, "merges must hold n-1 and condensed n(n-1)/2 values for an n >= 1, got ", merges_size,
                " and ", condensed_size);
    }
    c::copy(linkage(distances, c::linkage(kOperation, method), runs_on), out.data());
  });
}

stun_ext_status stun_ext_linkage_rows(const stun_ext_const_matrix* rows, stun_ext_linkage_method method,
                                      const stun_ext_linkage_options* options, stun_ext_merge* merges,
                                      int64_t merges_size, int64_t* count, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "linkage";
    c::CallerExecutor runs_on(kOperation, executor);
    c::CallerOptions with(kOperation, options);
    const ConstMatrixView view = c::view(kOperation, "rows", rows);
    const auto out = c::span(kOperation, "merges", merges, merges_size);
    int64_t& out_count = c::at(kOperation, "count", count);
    if (merges_size < view.rows && merges_size + 1 < view.rows) {  // merges_size < n-1, of any n without overflow
      c::refuse(kOperation, "merges must have room for n-1 = ", view.rows - 1, " values, got ", merges_size);
    }
    const std::vector<Merge> made = linkage_rows(view, c::linkage(kOperation, method), with.get(), runs_on);
    c::copy(made, out.data());
    out_count = static_cast<int64_t>(made.size());
  });
}

stun_ext_status stun_ext_cut_tree_count(const stun_ext_merge* merges, int64_t merges_size, int64_t n_clusters,
                                        int64_t* labels, int64_t labels_size) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "cut_tree";
    cut_tree_count(c::merges_of(kOperation, merges, merges_size), n_clusters,
                   c::span(kOperation, "labels", labels, labels_size));
  });
}

stun_ext_status stun_ext_cut_tree_height(const stun_ext_merge* merges, int64_t merges_size, double height,
                                         int64_t* labels, int64_t labels_size) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "cut_tree";
    cut_tree_height(c::merges_of(kOperation, merges, merges_size), height,
                    c::span(kOperation, "labels", labels, labels_size));
  });
}

stun_ext_status stun_ext_star_clusters(const stun_ext_const_matrix* distances, double threshold, int64_t min_clusters,
                                       int64_t* labels, int64_t labels_size, int64_t* n_clusters) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "star_clusters";
    int64_t& out = c::at(kOperation, "n_clusters", n_clusters);
    out = star_clusters(c::view(kOperation, "distances", distances), threshold, min_clusters,
                        c::span(kOperation, "labels", labels, labels_size));
  });
}

stun_ext_status stun_ext_star_clusters_count(const stun_ext_const_matrix* distances, int64_t n_clusters,
                                             int64_t* labels, int64_t labels_size, double* threshold) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "star_clusters_count";
    double& out = c::at(kOperation, "threshold", threshold);
    out = star_clusters_count(c::view(kOperation, "distances", distances), n_clusters,
                              c::span(kOperation, "labels", labels, labels_size));
  });
}

stun_ext_status stun_ext_star_clusters_rows(const stun_ext_const_matrix* rows, double threshold, int64_t min_clusters,
                                            const stun_ext_linkage_options* options, int64_t* labels,
                                            int64_t labels_size, int64_t* n_clusters,
                                            const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "star_clusters_rows";
    c::CallerExecutor runs_on(kOperation, executor);
    c::CallerOptions with(kOperation, options);
    int64_t& out = c::at(kOperation, "n_clusters", n_clusters);
    out = star_clusters_rows(c::view(kOperation, "rows", rows), threshold, min_clusters,
                             c::span(kOperation, "labels", labels, labels_size), with.get(), runs_on);
  });
}

stun_ext_status stun_ext_allocate_experts(const stun_ext_const_matrix* distances, int64_t distances_size, int64_t total,
                                          int64_t min_experts, int64_t n_group, int64_t* counts, int64_t counts_size,
                                          int64_t* reached_total, double* threshold,
                                          const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "allocate_experts";
    c::CallerExecutor runs_on(kOperation, executor);
    std::vector<ConstMatrixView> layers;
    for (const stun_ext_const_matrix& layer : c::span(kOperation, "distances", distances, distances_size)) {
      layers.push_back(c::view(kOperation, "distances", &layer));
    }
    const auto out = c::span(kOperation, "counts", counts, counts_size);
    if (counts_size != distances_size) {
      c::refuse(kOperation, "counts must hold one value for each of the ", distances_size, " layers, got ",
                counts_size);
    }
    int64_t& out_total = c::at(kOperation, "reached_total", reached_total);
    double& out_threshold = c::at(kOperation, "threshold", threshold);
    const Allocation allocation = allocate_experts(layers, total, min_experts, n_group, runs_on);
    std::copy(allocation.counts.begin(), allocation.counts.end(), out.data());
    out_total = allocation.reached_total;
    out_threshold = allocation.threshold;
  });
}
