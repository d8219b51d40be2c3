// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#pragma GCC visibility push(default)
namespace stun_ext {

/// A non-owning reference to a callable `void(begin, end)`; lives no longer than the callable.
class RangeTask {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, RangeTask>>>
  RangeTask(F& function) noexcept
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
        call_([](void* object, std::int64_t begin, std::int64_t end) { (*static_cast<F*>(object))(begin, end); }) {}

  void operator()(std::int64_t begin, std::int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, std::int64_t);
};

/// Where parallel work runs. An engine that owns its threads implements this and passes it to the operations.
class Executor {
 public:
  virtual ~Executor() = default;

  /// How many ranges can run at once (at least 1).
  virtual int concurrency() const noexcept = 0;

  /// Calls `task` on disjoint ranges that cover [0, count), each at most `grain` long, and returns when all are done.
  /// The first exception thrown by a task is rethrown here, after every running task has ended.
  virtual void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) = 0;
};

/// The library's own executor: threads started per call and joined before it returns, so it holds no state between
/// calls, is safe after fork(), and may be used from many threads at once. It uses num_threads() threads.
Executor& default_executor() noexcept;

/// Threads of the default executor: the last set_num_threads, else the environment's STUN_EXT_NUM_THREADS (read once; a
/// value that is not a positive integer is ignored), else the processors this process may run on.
int num_threads() noexcept;

/// Sets the threads of the default executor for the whole process; std::invalid_argument if `count` < 1.
void set_num_threads(int count);

}  // namespace stun_ext
#pragma GCC visibility pop
