// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "operations.h"

enum { THREADS = 4 };

// Executors that keep the contract; the context counts the calls.

static stun_ext_status in_order(void* context, int64_t count, int64_t grain, stun_ext_task task, void* task_context) {
  ++*(int*)context;
  for (int64_t begin = 0; begin < count; begin += grain) {
    const stun_ext_status status = task(task_context, begin, count - begin < grain ? count : begin + grain);
    if (status != STUN_EXT_OK) return status;
  }
  return STUN_EXT_OK;
}

/// Backwards and one item at a time; what a task returns is of no interest to it.
static stun_ext_status backwards(void* context, int64_t count, int64_t grain, stun_ext_task task, void* task_context) {
  (void)grain;
  ++*(int*)context;
  for (int64_t end = count; end > 0; --end) task(task_context, end - 1, end);
  return STUN_EXT_OK;
}

struct shared_work {
  atomic_llong next;
  int64_t count, grain;
  stun_ext_task task;
  void* task_context;
};

static void* worker(void* argument) {
  struct shared_work* work = argument;
  for (;;) {
    const int64_t begin = atomic_fetch_add(&work->next, work->grain);
    if (begin >= work->count) return NULL;
    const int64_t end = work->count - begin < work->grain ? work->count : begin + work->grain;
    if (work->task(work->task_context, begin, end) != STUN_EXT_OK) return NULL;
  }
}

/// Threads of the caller's, none of which is the one that called.
static stun_ext_status on_threads(void* context, int64_t count, int64_t grain, stun_ext_task task, void* task_context) {
  ++*(int*)context;
  struct shared_work work = {0, count, grain, task, task_context};
  pthread_t threads[THREADS];
  for (int t = 0; t < THREADS; ++t) {
    if (pthread_create(&threads[t], NULL, worker, &work) != 0) return STUN_EXT_INTERNAL;
  }
  for (int t = 0; t < THREADS; ++t) pthread_join(threads[t], NULL);
  return STUN_EXT_OK;
}

static stun_ext_executor executor_of(stun_ext_status (*parallel_for)(void*, int64_t, int64_t, stun_ext_task, void*),
                                     int64_t concurrency, int* calls) {
  stun_ext_executor executor = STUN_EXT_EXECUTOR_INIT;
  executor.concurrency = concurrency;
  executor.context = calls;
  executor.parallel_for = parallel_for;
  return executor;
}

static void test_same_results(void) {
  static unsigned char expected[sizeof output];
  for (int i = 0; i < OPERATIONS; ++i) {
    memset(output, 0, sizeof output);
    OK(kOperations[i](NULL));
    memcpy(expected, output, sizeof output);
    int calls[3] = {0};
    const stun_ext_executor executors[3] = {executor_of(in_order, 1, &calls[0]), executor_of(backwards, 3, &calls[1]),
                                            executor_of(on_threads, THREADS, &calls[2])};
    for (int e = 0; e < 3; ++e) {
      memset(output, 0, sizeof output);
      OK(kOperations[i](&executors[e]));
      CHECK(memcmp(output, expected, sizeof output) == 0);
      CHECK(calls[e] > 0);
    }
  }
}

// Executors that break it.

static stun_ext_status fails(void* context, int64_t count, int64_t grain, stun_ext_task task, void* task_context) {
  (void)context, (void)count, (void)grain, (void)task, (void)task_context;
  return 42;
}

static stun_ext_status does_nothing(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                    void* task_context) {
  (void)context, (void)count, (void)grain, (void)task, (void)task_context;
  return STUN_EXT_OK;
}

static stun_ext_status does_it_twice(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                     void* task_context) {
  in_order(context, count, grain, task, task_context);
  return in_order(context, count, grain, task, task_context);
}

static stun_ext_status goes_beyond(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                   void* task_context) {
  (void)context, (void)grain;
  CHECK(task(task_context, count, count + 1) == STUN_EXT_CALLBACK_FAILED);
  CHECK(task(task_context, 0, 1) == STUN_EXT_CALLBACK_FAILED);  // not run any more
  return STUN_EXT_OK;
}

static stun_ext_status starts_below(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                    void* task_context) {
  (void)context, (void)count, (void)grain;
  return task(task_context, -1, 0);
}

static stun_ext_status sends_empty(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                   void* task_context) {
  (void)context, (void)count, (void)grain;
  return task(task_context, 0, 0);
}

static stun_ext_status ignores_grain(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                     void* task_context) {
  ++*(int*)context;
  return count > grain ? task(task_context, 0, grain + 1) : task(task_context, 0, count);
}

static void test_broken_contract(void) {
  int calls = 0;
  const char* const ranges = "executor.parallel_for must call the task on ranges in [0, ";
  const struct {
    stun_ext_status (*parallel_for)(void*, int64_t, int64_t, stun_ext_task, void*);
    const char* part;
  } broken[] = {{fails, "executor.parallel_for must return STUN_EXT_OK, got 42"},
                {does_nothing, "items once, got 0"},
                {goes_beyond, ranges},
                {starts_below, ranges},
                {sends_empty, ranges}};
  for (int i = 0; i < OPERATIONS; ++i) {
    for (size_t b = 0; b < sizeof broken / sizeof *broken; ++b) {
      const stun_ext_executor executor = executor_of(broken[b].parallel_for, 2, &calls);
      FAILS(kOperations[i](&executor), STUN_EXT_CALLBACK_FAILED, broken[b].part);
    }
    // What only C can get wrong about the struct.
    stun_ext_executor bad = executor_of(NULL, 2, &calls);
    REFUSES(kOperations[i](&bad), "executor.parallel_for must not be null");
    bad = executor_of(in_order, 0, &calls);
    REFUSES(kOperations[i](&bad), "executor.concurrency must be in [1, 2147483647], got 0");
    bad = executor_of(in_order, (int64_t)1 << 31, &calls);
    REFUSES(kOperations[i](&bad), "got 2147483648");
    bad = executor_of(in_order, 2, &calls), bad.struct_size = 0;
    REFUSES(kOperations[i](&bad), "executor.struct_size must be in [32, 4096]");
  }
  stun_ext_executor executor = executor_of(does_it_twice, 2, &calls);
  FAILS(run_condensed(&executor), STUN_EXT_CALLBACK_FAILED, "items once, got ");
  executor = executor_of(ignores_grain, 2, &calls);
  FAILS(run_condensed(&executor), STUN_EXT_CALLBACK_FAILED, ranges);
}

/// An error in the middle of the work, on whatever thread it happens, is the operation's.
static void test_failing_task(void) {
  enum { N = 400 };
  double far[N * 2];
  for (int i = 0; i < 2 * N; ++i) far[i] = i * 1e200;
  const stun_ext_const_matrix rows = stun_ext_const_row_major(far, N, 2, STUN_EXT_FLOAT64);
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  stun_ext_merge merges[N - 1];
  int64_t count = -1;
  int calls = 0;
  const stun_ext_executor executors[3] = {executor_of(in_order, 1, &calls), executor_of(backwards, 3, &calls),
                                          executor_of(on_threads, THREADS, &calls)};
  for (int e = 0; e < 4; ++e) {
    REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, N - 1, &count, e == 3 ? NULL : &executors[e]),
            "[linkage] distances must be at most 1e+150 for this method");
    CHECK(count == -1);
  }
}

void test_executor(void) {
  make_data();
  test_same_results();
  test_broken_contract();
  test_failing_task();
}
