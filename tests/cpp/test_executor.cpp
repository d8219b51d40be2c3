// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <thread>

#include "support.hpp"

namespace stun_ext::test {
namespace {

TEST(Executor, CoversEveryIndexOnceInRangesOfAtMostTheGrain) {
  for (const int threads : {1, 2, 3, 7}) {
    const Threads scope(threads);
    for (const std::int64_t count : {0, 1, 2, 63, 64, 65, 1000}) {
      for (const std::int64_t grain : {1, 7, 64, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
        std::atomic<bool> is_too_long{false};
        auto task = [&](std::int64_t begin, std::int64_t end) {
          if (end - begin > grain || begin >= end) is_too_long = true;
          for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
        };
        default_executor().parallel_for(count, grain, task);
        EXPECT_FALSE(is_too_long);
        for (const auto& times : seen) EXPECT_EQ(times.load(), 1);
      }
    }
  }
}

TEST(Executor, RethrowsTheExceptionAfterAllTasksEnded) {
  for (const int threads : {1, 2, 7}) {
    const Threads scope(threads);
    std::atomic<int> running{0};
    auto task = [&](std::int64_t begin, std::int64_t) {
      ++running;
      std::this_thread::yield();
      --running;
      if (begin == 5) throw std::runtime_error("five");
    };
    try {
      default_executor().parallel_for(100, 1, task);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "five");
    }
    EXPECT_EQ(running.load(), 0);
  }
}

TEST(Executor, StopsHandingOutWorkAfterAnException) {
  const Threads scope(1);
  int calls = 0;
  auto task = [&](std::int64_t, std::int64_t) {
    ++calls;
    throw std::runtime_error("first");
  };
  EXPECT_THROW(default_executor().parallel_for(100, 1, task), std::runtime_error);
  EXPECT_EQ(calls, 1);
}

TEST(Executor, WorksFromManyThreadsAtOnceAndNested) {
  const Threads scope(3);
  std::atomic<int> total{0};
  auto inner = [&](std::int64_t begin, std::int64_t end) { total += static_cast<int>(end - begin); };
  auto outer = [&](std::int64_t, std::int64_t) { default_executor().parallel_for(10, 1, inner); };
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([&] { default_executor().parallel_for(5, 1, outer); });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 5 * 10);
}

TEST(Executor, ThreadCountIsSetAndChecked) {
  const Threads scope(5);
  EXPECT_EQ(num_threads(), 5);
  EXPECT_EQ(default_executor().concurrency(), 5);
  for (const int count : {0, -3}) {
    expect_error([&] { set_num_threads(count); }, {"[set_num_threads]", "at least 1", "got " + std::to_string(count)});
  }
  EXPECT_EQ(num_threads(), 5);
}

}  // namespace
}  // namespace stun_ext::test
