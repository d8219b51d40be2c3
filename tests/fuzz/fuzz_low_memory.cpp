// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "fuzz.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"

namespace stun_ext::fuzz {
namespace {

/// More rows than an input has bytes: of a kind that the input says.
test::Matrix pick_rows(Input& input) {
  const std::int64_t n = input.ConsumeIntegralInRange<std::int64_t>(240, 300), d = input.ConsumeIntegralInRange(1, 6);
  const DType types[] = {DType::f32, DType::f16, DType::bf16, DType::f64};
  const auto layout = test::kLayouts[input.ConsumeIntegralInRange(0, 3)];
  test::Matrix rows(types[input.ConsumeIntegralInRange(0, 3)], n, d, layout);
  std::mt19937 generator(input.ConsumeIntegral<std::uint32_t>());
  std::normal_distribution<double> normal;
  const int values = input.ConsumeIntegralInRange(0, 6);  // 0: any, so hardly any ties
  const std::int64_t centers = input.ConsumeIntegralInRange(1, 40);
  const double spread = std::ldexp(1.0, input.ConsumeIntegralInRange(-9, 3));
  const double scale = std::ldexp(1.0, input.ConsumeIntegralInRange(-12, 12));
  const double shift = input.ConsumeBool() ? 0.0 : 100.0;
  std::vector<double> center(static_cast<std::size_t>(centers * d));
  for (double& value : center) value = normal(generator);
  rows.fill([&](std::int64_t r, std::int64_t c) {
    if (values > 0) return static_cast<double>(generator() % static_cast<unsigned>(values + 1));
    return scale * (shift + center[static_cast<std::size_t>(r % centers * d + c)] + spread * normal(generator));
  });
  return rows;
}

/// Whether the call returns; if not, it can only be that the limit is too small for it.
template <class Call>
bool fits(const std::string& operation, Call&& call) {
  try {
    call();
    return true;
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    require(message.rfind("[" + operation + "] memory_limit must ", 0) == 0, "only the limit is wrong: " + message);
    return false;
  }
}

void run(Input& input) {
  const test::Matrix rows = pick_rows(input);
  const std::int64_t n = rows.view().rows;
  LinkageOptions options;
  options.memory_limit = input.ConsumeIntegralInRange<std::int64_t>(240000, 500000);
  Splitting executor(input);
  std::vector<double> matrix(static_cast<std::size_t>(n * n));
  const MatrixView view = {matrix.data(), n, n, n, 1, DType::f64};
  pairwise_distances(rows.view(), false, view);
  const double some_distance = matrix[input.ConsumeIntegralInRange<std::size_t>(0, matrix.size() - 1)];

  if (input.ConsumeIntegralInRange(0, 3) == 0) {
    const std::int64_t least = input.ConsumeBool() ? 1 : input.ConsumeIntegralInRange<std::int64_t>(1, n);
    std::vector<std::int64_t> labels(static_cast<std::size_t>(n)), expected(labels.size());
    std::int64_t clusters = 0;
    if (!fits("star_clusters_rows",
              [&] { clusters = star_clusters_rows(rows.view(), some_distance, least, labels, options, executor); })) {
      return;
    }
    require(count_clusters(labels) == clusters, "the number of clusters");
    require(star_clusters(view, some_distance, least, expected) == clusters && labels == expected,
            "the star rule on the matrix");
    return;
  }
  const auto method = static_cast<Linkage>(input.ConsumeIntegralInRange(0, 4));
  if (input.ConsumeBool()) options.n_clusters = input.ConsumeIntegralInRange<std::int64_t>(1, n);
  if (input.ConsumeBool()) options.height = some_distance;
  std::vector<Merge> merges;
  if (!fits("linkage", [&] { merges = linkage_rows(rows.view(), method, options, executor); })) return;
  LinkageOptions unlimited = options;
  unlimited.memory_limit = 0;
  const std::vector<Merge> expected = linkage_rows(rows.view(), method, unlimited);
  require(merges.size() == expected.size(), "as many merges as with the matrix");
  for (std::size_t i = 0; i < merges.size(); ++i) {
    require(merges[i].first == expected[i].first && merges[i].second == expected[i].second &&
                merges[i].size == expected[i].size,
            "the merges of the matrix");
    require(std::abs(merges[i].height - expected[i].height) <= 1e-9 * expected.back().height, "its heights");
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  stun_ext::fuzz::run(input);
  return 0;
}
