// SPDX-License-Identifier: Apache-2.0
// Clusters a tiny router and prunes a tiny expert with the public headers alone, on threads of its own.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "stun_ext/allocation.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/error.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/saliency.hpp"
#include "stun_ext/version.hpp"
#include "stun_ext/view.hpp"

namespace {

// An engine's executor: here, the calling thread.
class Inline final : public stun_ext::Executor {
 public:
  int concurrency() const noexcept override { return 1; }
  void parallel_for(std::int64_t count, std::int64_t grain, stun_ext::RangeTask task) override {
    for (std::int64_t begin = 0; begin < count; begin += grain) {
      task(begin, begin + grain < count ? begin + grain : count);
      ++ranges;
    }
  }
  int ranges = 0;
};

}  // namespace

int main() {
  using stun_ext::DType;
  Inline executor;

  const std::vector<float> router = {0, 0, 0, 1, 9, 9, 9, 8};
  std::vector<float> distances(16);
  stun_ext::pairwise_distances({router.data(), 4, 2, 2, 1, DType::f32}, false,
                               {distances.data(), 4, 4, 4, 1, DType::f32}, executor);
  const stun_ext::ConstMatrixView view = {distances.data(), 4, 4, 4, 1, DType::f32};
  std::vector<std::int64_t> labels(4);
  const std::int64_t clusters = stun_ext::star_clusters(view, 2.0, 1, labels);
  const auto merges =
      stun_ext::linkage_rows({router.data(), 4, 2, 2, 1, DType::f32}, stun_ext::Linkage::ward, {}, executor);
  const auto allocation = stun_ext::allocate_experts({&view, 1}, 2, 1, 1, executor);

  std::vector<float> weight = {1, -4, 2, 3};
  const std::vector<std::int64_t> counts = {2};
  const std::int64_t zeros = stun_ext::wanda_prune({weight.data(), 1, 4, 4, 1, DType::f32}, {}, counts, executor);

  std::printf("stun_ext %s: %lld clusters, %zu merges, %lld kept, %lld zeros, CUDA: %s\n", STUN_EXT_VERSION,
              static_cast<long long>(clusters), merges.size(), static_cast<long long>(allocation.reached_total),
              static_cast<long long>(zeros), stun_ext::cuda::build_info());
  const bool is_right = clusters == 2 && labels == std::vector<std::int64_t>{0, 0, 2, 2} && merges.size() == 3 &&
                        allocation.reached_total == 2 && weight == std::vector<float>{0, -4, 0, 3} && zeros == 2 &&
                        executor.ranges > 0;
  return is_right ? 0 : 1;
}
