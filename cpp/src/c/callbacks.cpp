// SPDX-License-Identifier: Apache-2.0
#include "callbacks.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>

#include "arguments.hpp"
#include "status.hpp"

namespace stun_ext::c {
namespace {

/// One parallel_for, as the ranges see it that the caller's executor runs.
struct Work {
  const char* operation;
  RangeTask task;
  std::int64_t count;
  std::int64_t grain;
  std::atomic<std::int64_t> done{0};                 ///< items in ranges that ended well
  std::atomic<stun_ext_status> status{STUN_EXT_OK};  ///< of the first range that did not
  std::exception_ptr error{};                        ///< its exception
  std::mutex error_mutex{};
};

void run(Work& work, std::int64_t begin, std::int64_t end) {
  if (begin < 0 || begin >= end || end > work.count || end - begin > work.grain) {
    throw CallbackError(message_of(work.operation, "executor.parallel_for must call the task on ranges in [0, ",
                                   work.count, ") of 1 to ", work.grain, " items, got [", begin, ", ", end, ")"));
  }
  work.task(begin, end);
  work.done += end - begin;
}

extern "C" {
static stun_ext_status stun_ext_run_range(void* task_context, std::int64_t begin, std::int64_t end) {
  auto& work = *static_cast<Work*>(task_context);
  if (const stun_ext_status failed = work.status; failed != STUN_EXT_OK) return failed;  // the rest is in vain
  try {
    run(work, begin, end);
    return STUN_EXT_OK;
  } catch (...) {
    const std::lock_guard<std::mutex> lock(work.error_mutex);
    const stun_ext_status status = status_of_exception();
    if (!work.error) {
      work.error = std::current_exception();
      work.status = status;
    }
    return status;
  }
}
}

}  // namespace

CallerExecutor::CallerExecutor(const char* operation, const stun_ext_executor* given)
    : operation_(operation), is_given_(given != nullptr) {
  if (!is_given_) return;
  executor_ = versioned(operation, "executor", given);
  if (executor_.parallel_for == nullptr) refuse(operation, "executor.parallel_for must not be null");
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (executor_.concurrency < 1 || executor_.concurrency > kMost) {
    refuse(operation, "executor.concurrency must be in [1, ", kMost, "], got ", executor_.concurrency);
  }
}

int CallerExecutor::concurrency() const noexcept {
  return is_given_ ? static_cast<int>(executor_.concurrency) : default_executor().concurrency();
}

void CallerExecutor::parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) {
  if (!is_given_) return default_executor().parallel_for(count, grain, task);
  if (count <= 0) return;
  Work work{operation_, task, count, std::max<std::int64_t>(grain, 1)};
  const stun_ext_status status =
      executor_.parallel_for(executor_.context, work.count, work.grain, stun_ext_run_range, &work);
  if (work.error) std::rethrow_exception(work.error);
  if (status != STUN_EXT_OK) {
    throw CallbackError(message_of(operation_, "executor.parallel_for must return STUN_EXT_OK, got ", status));
  }
  if (work.done != count) {
    throw CallbackError(message_of(operation_, "executor.parallel_for must run ranges that cover all of the ", count,
                                   " items once, got ", work.done.load()));
  }
}

CallerOptions::CallerOptions(const char* operation, const stun_ext_linkage_options* given)
    : operation_(operation), given_(versioned(operation, "options", given)) {
  options_.memory_limit = given_.memory_limit;
  options_.n_clusters = given_.n_clusters;
  // Nothing is above the largest double; C++ writes that as infinity.
  options_.height = given_.height == STUN_EXT_ANY_HEIGHT ? std::numeric_limits<double>::infinity() : given_.height;
  if (given_.progress != nullptr) options_.progress = this;
}

bool CallerOptions::update(double fraction) {
  const stun_ext_status status = given_.progress(given_.progress_context, fraction);
  if (status != STUN_EXT_OK && status != STUN_EXT_CANCELLED) {
    throw CallbackError(
        message_of(operation_, "options.progress must return STUN_EXT_OK or STUN_EXT_CANCELLED, got ", status));
  }
  return status == STUN_EXT_OK;
}

}  // namespace stun_ext::c
