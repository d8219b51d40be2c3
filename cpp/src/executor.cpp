// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/executor.hpp"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"

namespace stun_ext {
namespace {

int processors() noexcept {
#ifdef __linux__
  // Honours taskset and container CPU sets, which hardware_concurrency need not.
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int initial_num_threads() noexcept {
  if (const char* text = std::getenv("STUN_EXT_NUM_THREADS")) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && value >= 1 && value <= std::numeric_limits<int>::max()) {
      return static_cast<int>(value);
    }
  }
  return processors();
}

// Set once, so that later changes of the environment cannot race with readers.
std::atomic<int>& thread_count() noexcept {
  static std::atomic<int> count{initial_num_threads()};
  return count;
}

class ThreadExecutor final : public Executor {
 public:
  int concurrency() const noexcept override { return num_threads(); }

  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(grain, 1);
    const std::int64_t ranges = (count - 1) / grain + 1;
    const auto threads = static_cast<int>(std::min<std::int64_t>(ranges, concurrency()));

    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_mutex;
    auto work = [&]() noexcept {
      for (std::int64_t range = next.fetch_add(1); range < ranges; range = next.fetch_add(1)) {
        try {
          const std::int64_t begin = range * grain;
          task(begin, begin + std::min(grain, count - begin));
        } catch (...) {
          const std::lock_guard<std::mutex> lock(error_mutex);
          if (!error) error = std::current_exception();
          next.store(ranges);  // the others finish what they have and take no more
        }
      }
    };

    std::vector<std::thread> workers;
    if (threads > 1) {
      workers.reserve(static_cast<std::size_t>(threads - 1));
      try {
        while (workers.size() + 1 < static_cast<std::size_t>(threads)) workers.emplace_back(work);
      } catch (const std::system_error&) {
        // No more threads to be had here: those that started, and this one, do the work.
      }
    }
    work();
    for (std::thread& worker : workers) worker.join();
    if (error) std::rethrow_exception(error);
  }
};

}  // namespace

Executor& default_executor() noexcept {
  static ThreadExecutor executor;
  return executor;
}

int num_threads() noexcept { return thread_count().load(std::memory_order_relaxed); }

void set_num_threads(int count) {
  if (count < 1) detail::fail("set_num_threads", "count must be at least 1, got ", count);
  thread_count().store(count, std::memory_order_relaxed);
}

}  // namespace stun_ext
