// SPDX-License-Identifier: Apache-2.0
// Clusters a tiny router and prunes a tiny expert with the public headers alone, on an executor of its own, and catches
// what the library throws: through a shared library that works only if both sides share the exceptions' types.
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "stun_ext/allocation.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/cpu.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/error.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/progress.hpp"
#include "stun_ext/saliency.hpp"
#include "stun_ext/version.hpp"
#include "stun_ext/view.hpp"

namespace {

using stun_ext::DType;

struct EngineStopped {};  // an exception of the engine's own

// An engine's executor: here, the calling thread.
class Inline final : public stun_ext::Executor {
 public:
  int concurrency() const noexcept override { return 1; }
  void parallel_for(std::int64_t count, std::int64_t grain, stun_ext::RangeTask task) override {
    if (is_stopped) throw EngineStopped();
    for (std::int64_t begin = 0; begin < count; begin += grain) {
      task(begin, begin + grain < count ? begin + grain : count);
      ++ranges;
    }
  }
  bool is_stopped = false;
  int ranges = 0;
};

class Cancel final : public stun_ext::Progress {
 public:
  bool update(double /*fraction*/) override { return false; }
};

template <class Error, class F>
bool throws(F function) {
  try {
    function();
  } catch (const Error&) {
    return true;
  } catch (...) {
  }
  return false;
}

bool clusters_and_prunes() {
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

  std::printf("stun_ext %s: %lld clusters, %zu merges, %lld kept, %lld zeros\n", STUN_EXT_VERSION,
              static_cast<long long>(clusters), merges.size(), static_cast<long long>(allocation.reached_total),
              static_cast<long long>(zeros));
  return clusters == 2 && labels == std::vector<std::int64_t>{0, 0, 2, 2} && merges.size() == 3 &&
         allocation.reached_total == 2 && weight == std::vector<float>{0, -4, 0, 3} && zeros == 2 &&
         executor.ranges > 0;
}

bool catches() {
  const std::vector<float> router = {0, 1, 5};
  const stun_ext::ConstMatrixView rows = {router.data(), 3, 1, 1, 1, DType::f32};
  Cancel cancel;
  stun_ext::LinkageOptions cancelled;
  cancelled.progress = &cancel;
  Inline stopped;
  stopped.is_stopped = true;
  // Whichever of the two does not belong to this processor.
  const auto foreign = [] {
    stun_ext::set_isa(stun_ext::Isa::neon);
    stun_ext::set_isa(stun_ext::Isa::avx2);
  };
  const auto linkage = [&](const stun_ext::LinkageOptions& options, stun_ext::Executor& executor) {
    stun_ext::linkage_rows(rows, stun_ext::Linkage::single, options, executor);
  };
  return throws<std::invalid_argument>([] { stun_ext::set_num_threads(0); }) &&
         throws<stun_ext::UnavailableError>(foreign) &&
         throws<stun_ext::CancelledError>([&] { linkage(cancelled, stun_ext::default_executor()); }) &&
         throws<EngineStopped>([&] { linkage({}, stopped); });
}

}  // namespace

int main() { return clusters_and_prunes() && catches() ? 0 : 1; }
