// SPDX-License-Identifier: Apache-2.0
#include "references.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::fuzz {
namespace {

void run(Input& input) {
  const std::size_t n = input.ConsumeIntegralInRange<std::size_t>(0, 12);
  const std::size_t count = input.ConsumeIntegralInRange<std::size_t>(0, 11);
  std::vector<Merge> merges(count);
  std::vector<double> sizes(n, 1.0), open;  // an honest dendrogram, which some fields then leave
  for (std::size_t i = 0; i < n; ++i) open.push_back(static_cast<double>(i));
  for (std::size_t i = 0; i < count; ++i) {
    double ids[2] = {0.0, 0.0};
    for (double& id : ids) {
      if (open.empty()) break;
      const auto at = input.ConsumeIntegralInRange<std::size_t>(0, open.size() - 1);
      id = open[at];
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    }
    const auto size_of_node = [&](double id) {
      return id < static_cast<double>(sizes.size()) ? sizes[static_cast<std::size_t>(id)] : 0.0;
    };
    merges[i] = {ids[0], ids[1], static_cast<double>(input.ConsumeIntegralInRange(-1, 6)),
                 size_of_node(ids[0]) + size_of_node(ids[1])};
    sizes.push_back(merges[i].size);
    open.push_back(static_cast<double>(n + i));
    double* const fields[] = {&merges[i].first, &merges[i].second, &merges[i].height, &merges[i].size};
    const int field = input.ConsumeIntegralInRange(0, 60);
    if (field < 4) *fields[field] = pick_double(input);
  }
  std::vector<std::int64_t> labels(n, -7);
  const std::vector<std::int64_t> untouched = labels;

  const auto n_clusters = input.ConsumeIntegralInRange<std::int64_t>(-1, 13);
  if (accepts("cut_tree", [&] { cut_tree_count(merges, n_clusters, labels); })) {
    require(count_clusters(labels) == n_clusters, "as many clusters as asked for");
    std::vector<bool> is_applied(count);
    for (std::size_t i = 0; i < count; ++i)
      is_applied[i] = static_cast<std::int64_t>(i) < static_cast<std::int64_t>(n) - n_clusters;
    require(labels == labels_of(merges, n, is_applied), "the first merges are applied");
  } else {
    require(labels == untouched, "labels stay when a dendrogram is refused");
  }

  labels = untouched;
  const double height = pick_double(input);
  if (accepts("cut_tree", [&] { cut_tree_height(merges, height, labels); })) {
    count_clusters(labels);
    std::vector<bool> is_applied(count);
    for (std::size_t i = 0; i < count; ++i) {
      is_applied[i] = merges[i].height <= height;
      for (const double id : {merges[i].first, merges[i].second}) {
        if (id >= static_cast<double>(n)) is_applied[i] = is_applied[i] && is_applied[static_cast<std::size_t>(id) - n];
      }
    }
    require(labels == labels_of(merges, n, is_applied), "merges up to the height are applied");
  } else {
    require(labels == untouched, "labels stay when a height or dendrogram is refused");
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  stun_ext::fuzz::run(input);
  return 0;
}
