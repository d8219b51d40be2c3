// SPDX-License-Identifier: Apache-2.0
#include "openmp_executor.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace stun_ext::python {

#if defined(__linux__)

namespace {

// The entry points of `#pragma omp parallel` that GCC's code calls, which GNU's and LLVM's runtimes both have. Torch
// loads its runtime for the whole process to see, and this module depends on none.
using Parallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
using MaxThreads = int (*)();

template <class Function>
Function find(const char* name) noexcept {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

/// What the threads of one call share.
struct Ranges {
  RangeTask task;
  std::int64_t count, grain;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> has_failed{false};
  std::exception_ptr error;

  void work() noexcept {
    while (!has_failed.load(std::memory_order_relaxed)) {
      const std::int64_t begin = next.fetch_add(grain);
      if (begin >= count) return;
      try {
        task(begin, std::min(count, begin + grain));
      } catch (...) {
        if (!has_failed.exchange(true)) error = std::current_exception();
      }
    }
  }
};

class OpenMPExecutor final : public Executor {
 public:
  OpenMPExecutor(Parallel parallel, MaxThreads max_threads) noexcept
      : parallel_(parallel), max_threads_(max_threads), process_(getpid()) {}

  bool is_usable() const noexcept { return parallel_ != nullptr && max_threads_ != nullptr && getpid() == process_; }

  int concurrency() const noexcept override { return std::max(1, std::min(num_threads(), max_threads_())); }

  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(grain, 1);
    Ranges ranges{task, count, grain};
    const std::int64_t threads = std::min<std::int64_t>((count - 1) / grain + 1, concurrency());
    if (threads == 1) {
      ranges.work();
    } else {
      parallel_([](void* data) { static_cast<Ranges*>(data)->work(); }, &ranges, static_cast<unsigned>(threads), 0);
    }
    if (ranges.error) std::rethrow_exception(ranges.error);
  }

 private:
  Parallel parallel_;
  MaxThreads max_threads_;
  pid_t process_;
};

}  // namespace

Executor& openmp_executor() noexcept {
  static std::atomic<bool> is_there{false};
  if (!is_there.load(std::memory_order_acquire)) {
    if (find<Parallel>("GOMP_parallel") == nullptr) return default_executor();  // torch may be imported later
    is_there.store(true, std::memory_order_release);
  }
  static OpenMPExecutor executor(find<Parallel>("GOMP_parallel"), find<MaxThreads>("omp_get_max_threads"));
  return executor.is_usable() ? static_cast<Executor&>(executor) : default_executor();
}

#else

Executor& openmp_executor() noexcept { return default_executor(); }

#endif

}  // namespace stun_ext::python
