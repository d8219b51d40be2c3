// SPDX-License-Identifier: Apache-2.0
#include "references.hpp"
#include "stun_ext/allocation.hpp"
#include "stun_ext/cluster.hpp"

namespace stun_ext::fuzz {
namespace {

/// Mostly ties, +Inf among them; a wrong value now and then.
void fill(Input& input, AnyMatrix& matrix) {
  for (std::int64_t i = 0; i < matrix.view().rows; ++i) {
    for (std::int64_t j = 0; j < matrix.view().cols; ++j) {
      const int value = input.ConsumeIntegralInRange(0, 12);
      matrix.set(i, j, value == 12 ? pick_double(input) : value == 11 ? test::kInf : value);
    }
  }
}

void run_one(Input& input) {
  const std::int64_t n = pick_size(input, 9, 20);
  AnyMatrix matrix(input, input.ConsumeBool() ? DType::f64 : DType::f32, n, n);
  if (input.ConsumeBool()) fill(input, matrix);
  const MatrixView view = maybe_spoilt(input, matrix.view());
  const double threshold = pick_double(input);
  const std::int64_t wanted = input.ConsumeIntegralInRange<std::int64_t>(-1, 21);
  std::vector<std::int64_t> labels(static_cast<std::size_t>(n), -7);
  const std::vector<std::int64_t> untouched = labels;
  std::int64_t clusters = 0;
  if (accepts("star_clusters", [&] { clusters = star_clusters(view, threshold, wanted, labels); })) {
    const test::StarLabels expected = test::star_reference(upper(matrix, 0, n), threshold, wanted);
    require(count_clusters(labels) == clusters, "the number of clusters");
    require(clusters == expected.n_clusters && labels == expected.labels, "the rule word by word");
  } else {
    require(labels == untouched, "labels stay when arguments are refused");
  }
  labels = untouched;
  double used = 0.0;
  if (accepts("star_clusters_count", [&] { used = star_clusters_count(view, wanted, labels); })) {
    require(count_clusters(labels) == wanted, "exactly as many clusters as asked for");
    const test::StarLabels expected = test::star_reference(upper(matrix, 0, n), used, wanted);
    require(labels == expected.labels, "the rule at the threshold that is returned");
  } else {
    require(labels == untouched, "labels stay when arguments are refused");
  }
}

std::int64_t experts_at(const std::vector<AnyMatrix>& layers, double threshold, std::int64_t least,
                        std::int64_t n_group, std::vector<std::int64_t>* counts) {
  std::int64_t total = 0;
  if (counts != nullptr) counts->clear();
  for (const AnyMatrix& layer : layers) {
    const std::int64_t size = layer.view().rows / n_group;
    std::int64_t most = 0;
    for (std::int64_t group = 0; group < n_group; ++group) {
      most =
          std::max(most, test::star_reference(upper(layer, group * size, size), threshold, least / n_group).n_clusters);
    }
    total += n_group * most;
    if (counts != nullptr) counts->push_back(n_group * most);
  }
  return total;
}

void run_allocation(Input& input) {
  std::vector<AnyMatrix> layers;
  std::vector<ConstMatrixView> views;
  std::vector<double> thresholds = {test::kInf};
  const int n_layers = input.ConsumeIntegralInRange(0, 3);
  for (int layer = 0; layer < n_layers; ++layer) {
    const std::int64_t n = input.ConsumeIntegralInRange(0, 6);
    layers.emplace_back(input, input.ConsumeBool() ? DType::f64 : DType::f32, n, n);
    fill(input, layers.back());
  }
  for (const AnyMatrix& layer : layers) views.push_back(maybe_spoilt(input, layer.view()));
  const auto total = input.ConsumeIntegralInRange<std::int64_t>(-1, 19);
  const auto least = input.ConsumeIntegralInRange<std::int64_t>(-1, 7);
  const auto n_group = input.ConsumeBool() ? 1 : input.ConsumeIntegralInRange<std::int64_t>(-1, 4);
  Splitting executor(input);
  Allocation found;
  if (!accepts("allocate_experts", [&] { found = allocate_experts(views, total, least, n_group, executor); })) return;
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (views[i].rows != layers[i].view().rows) return;  // a part of it was asked for
  }
  std::vector<std::int64_t> counts;
  require(experts_at(layers, found.threshold, least, n_group, &counts) == found.reached_total,
          "the total of the threshold");
  require(found.counts == counts && found.requested_total == total, "the counts of the threshold");
  for (const AnyMatrix& layer : layers) {
    const std::int64_t size = layer.view().rows / n_group;
    for (std::int64_t i = 0; i < layer.view().rows; ++i) {
      for (std::int64_t j = i + 1; j < (i / size + 1) * size; ++j) thresholds.push_back(layer.get(i, j));
    }
  }
  const auto off = [&](std::int64_t reached) { return std::abs(reached - total); };
  for (const double threshold : thresholds) {
    const std::int64_t reached = experts_at(layers, threshold, least, n_group, nullptr);
    const bool is_better =
        off(reached) < off(found.reached_total) ||
        (off(reached) == off(found.reached_total) &&
         (reached > found.reached_total || (reached == found.reached_total && threshold < found.threshold)));
    require(!is_better, "no other pair distance is better");
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  if (input.ConsumeBool()) {
    stun_ext::fuzz::run_one(input);
  } else {
    stun_ext::fuzz::run_allocation(input);
  }
  return 0;
}
