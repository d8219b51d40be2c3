// SPDX-License-Identifier: Apache-2.0
// Every operation from many threads at once, on executors of all kinds: same bits as alone on one thread.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "operations.hpp"
#include "stun_ext/error.hpp"

namespace stun_ext::test {
namespace {

/// Runs all operations, in an order of the caller's own; returns the names of those that differ from the serial result.
std::vector<std::string> differing(Executor& executor, unsigned seed) {
  std::vector<std::size_t> order(all_operations().size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  std::vector<std::string> names;
  for (const std::size_t index : order) {
    const Operation& operation = all_operations()[index];
    if (operation.run(executor) != serial_results()[index]) names.push_back(operation.name);
  }
  return names;
}

void expect_all_equal(Executor& executor, unsigned seed = 1) {
  for (const std::string& name : differing(executor, seed)) ADD_FAILURE() << name << " differs from its serial result";
}

/// `callers` threads that each run everything at once.
void run_from_many_threads(Executor& executor, unsigned callers) {
  serial_results();
  std::vector<std::vector<std::string>> names(callers);
  std::vector<std::thread> threads;
  for (unsigned caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] { names[caller] = differing(executor, caller); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& each : names) {
    for (const std::string& name : each) ADD_FAILURE() << name << " differs from its serial result";
  }
}

/// Persistent threads, as an engine has them, which take turns at all the calls under way. Whoever calls works too, so
/// that calls from within a task cannot wait for each other.
class Pool final : public Executor {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int concurrency() const noexcept override { return static_cast<int>(workers_.size()) + 1; }

  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    const auto call = std::make_shared<Call>(Call{count, grain, task, 0, 0, nullptr});
    std::unique_lock<std::mutex> lock(mutex_);
    calls_.push_back(call);
    changed_.notify_all();
    while (call->next < count) run_one_range(*call, lock);
    calls_.erase(std::find(calls_.begin(), calls_.end(), call));
    changed_.wait(lock, [&] { return call->running == 0; });
    if (call->error) std::rethrow_exception(call->error);
  }

 private:
  struct Call {
    std::int64_t count, grain;
    RangeTask task;
    std::int64_t next;
    int running;
    std::exception_ptr error;
  };

  void run_one_range(Call& call, std::unique_lock<std::mutex>& lock) {
    const std::int64_t begin = call.next;
    call.next = std::min(call.count, begin + call.grain);
    const std::int64_t end = call.next;
    ++call.running;
    lock.unlock();
    std::exception_ptr error;
    try {
      call.task(begin, end);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !call.error) call.error = error;
    if (error) call.next = call.count;
    if (--call.running == 0) changed_.notify_all();
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const auto open = [](const std::shared_ptr<Call>& call) { return call->next < call->count; };
      const auto found = std::find_if(calls_.begin(), calls_.end(), open);
      if (found != calls_.end()) {
        const std::shared_ptr<Call> call = *found;
        run_one_range(*call, lock);
      } else if (is_ending_) {
        return;
      } else {
        changed_.wait(lock);
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Call>> calls_;
  bool is_ending_ = false;
  std::vector<std::thread> workers_;
};

/// On the caller's thread from the last range to the first, in ranges of changing sizes up to the grain; what it says
/// of its concurrency need not be so.
class Backwards final : public Executor {
 public:
  explicit Backwards(int concurrency) : concurrency_(concurrency) {}
  int concurrency() const noexcept override { return concurrency_; }
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    std::int64_t size = 1;
    for (std::int64_t end = count; end > 0; size = size % std::min<std::int64_t>(grain, 37) + 1) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - size);
      task(begin, end);
      end = begin;
    }
  }

 private:
  int concurrency_;
};

struct Failure : std::exception {};

/// The default executor, but one range, by its number in the order they begin, fails.
class Failing final : public Executor {
 public:
  explicit Failing(int which) : left_(which) {}
  int concurrency() const noexcept override { return default_executor().concurrency(); }
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    auto guarded = [&](std::int64_t begin, std::int64_t end) {
      if (left_.fetch_sub(1) == 0) throw Failure();
      task(begin, end);
    };
    default_executor().parallel_for(count, grain, guarded);
  }

 private:
  std::atomic<int> left_;
};

TEST(Concurrency, EveryOperationFromManyThreads) {
  const Threads scope(3);
  run_from_many_threads(default_executor(), 6);
}

TEST(Concurrency, SettingsMayChangeMeanwhile) {
  const Threads scope(2);
  const ForcedIsa forced(isa());
  const std::vector<Isa> supported = cpu_info().supported;
  std::atomic<bool> is_done{false};
  std::thread changing([&] {
    for (unsigned i = 0; !is_done; ++i) {
      set_num_threads(1 + static_cast<int>(i % 4));
      set_isa(supported[i % supported.size()]);
      std::this_thread::yield();
    }
  });
  run_from_many_threads(default_executor(), 3);
  is_done = true;
  changing.join();
}

TEST(Concurrency, AnEnginesPoolTakesCallsFromManyThreads) {
  Pool pool(3);
  EXPECT_EQ(pool.concurrency(), 4);
  run_from_many_threads(pool, 4);
}

TEST(Concurrency, RangesMayComeInAnyOrderAndSize) {
  for (const int concurrency : {1, 2, 5}) {
    Backwards executor(concurrency);
    expect_all_equal(executor);
  }
}

TEST(Concurrency, OperationsMayRunWithinTasksOfTheSameExecutor) {
  serial_results();
  const auto nested_in = [](Executor& executor) {
    std::vector<std::vector<std::string>> names(4);
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        names[static_cast<std::size_t>(i)] = differing(executor, static_cast<unsigned>(i));
      }
    };
    executor.parallel_for(4, 1, task);
    for (const auto& each : names) EXPECT_EQ(each, std::vector<std::string>());
  };
  const Threads scope(2);
  nested_in(default_executor());
  Pool pool(2);
  nested_in(pool);
}

TEST(Concurrency, AFailingTaskFailsTheCallAndNothingElse) {
  const Threads scope(3);
  int failures = 0;
  for (std::size_t index = 0; index < all_operations().size(); ++index) {
    const Operation& operation = all_operations()[index];
    for (int which = 0; which < 200; which = 2 * which + 1) {
      Failing executor(which);
      try {
        EXPECT_EQ(operation.run(executor), serial_results()[index]) << operation.name;
        break;  // it has no more ranges than that
      } catch (const Failure&) {
        ++failures;
      }
    }
    EXPECT_EQ(operation.run(default_executor()), serial_results()[index]) << operation.name << " after a failure";
  }
  EXPECT_GT(failures, 20);
}

/// Stops at its first question, which has to come from the thread that called.
class Stop final : public Progress {
 public:
  explicit Stop(bool by_exception) : by_exception_(by_exception), owner_(std::this_thread::get_id()) {}
  bool update(double) override {
    EXPECT_EQ(std::this_thread::get_id(), owner_);
    if (by_exception_) throw Failure();
    return false;
  }

 private:
  bool by_exception_;
  std::thread::id owner_;
};

TEST(Concurrency, OneCallerMayCancelWhileOthersGoOn) {
  Matrix rows(DType::f32, 400, 6);
  std::mt19937 generator(3);
  rows.fill_normal(generator);
  LinkageOptions options;
  options.memory_limit = 400000;
  const Threads scope(3);
  const Bytes expected = bytes_of(linkage_rows(rows.view(), Linkage::complete, options));
  std::vector<std::thread> callers;
  std::atomic<int> cancelled{0}, failed{0}, equal{0};
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      Stop stop(caller % 3 == 1);
      LinkageOptions own = options;
      if (caller % 3 != 2) own.progress = &stop;
      try {
        if (bytes_of(linkage_rows(rows.view(), Linkage::complete, own)) == expected) ++equal;
      } catch (const CancelledError&) {
        ++cancelled;
      } catch (const Failure&) {
        ++failed;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(cancelled.load(), 2);
  EXPECT_EQ(failed.load(), 2);
  EXPECT_EQ(equal.load(), 2);
}

}  // namespace
}  // namespace stun_ext::test
