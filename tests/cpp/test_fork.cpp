// SPDX-License-Identifier: Apache-2.0
// A process that has used the library, with threads, forks: the child can use it as well.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "operations.hpp"

namespace stun_ext::test {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kChildMayStartThreads = false;  // ThreadSanitizer ends it
#else
constexpr bool kChildMayStartThreads = true;
#endif
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kChildMayAllocate = false;  // a lock of AddressSanitizer's allocator that another thread held stays held
#else
constexpr bool kChildMayAllocate = true;
#endif

constexpr unsigned kMostSeconds = 60;  // after which a child that waits for ever is ended by its alarm

/// Everything, in a child: 0 if all is as the parent had it, else 1 + the index of the first operation that is not.
int status_of_child() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(kMostSeconds);
    int status = 0;
    for (std::size_t i = 0; i < all_operations().size() && status == 0; ++i) {
      if (all_operations()[i].run(default_executor()) != serial_results()[i]) status = 1 + static_cast<int>(i);
    }
    _exit(status);
  }
  int status = -1;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Fork, TheChildHasTheLibraryAndItsThreads) {
  if (!kChildMayStartThreads) GTEST_SKIP() << "this sanitizer does not allow it";
  const Threads scope(3);
  for (std::size_t i = 0; i < all_operations().size(); ++i) {
    EXPECT_EQ(all_operations()[i].run(default_executor()), serial_results()[i]) << all_operations()[i].name;
  }
  EXPECT_EQ(status_of_child(), 0);
}

TEST(Fork, WhileOtherThreadsAreInTheLibrary) {
  if (!kChildMayStartThreads || !kChildMayAllocate) GTEST_SKIP() << "this sanitizer does not allow it";
  const Threads scope(2);
  serial_results();
  std::atomic<bool> is_done{false};
  std::thread busy([&] {
    for (std::size_t i = 0; !is_done; ++i) all_operations()[i % all_operations().size()].run(default_executor());
  });
  for (int times = 0; times < 3; ++times) EXPECT_EQ(status_of_child(), 0);
  is_done = true;
  busy.join();
}

}  // namespace
}  // namespace stun_ext::test
