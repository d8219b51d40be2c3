// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"

enum { N = 400, D = 24, THREADS = 4 };

static float rows_data[N * D];
static int64_t counts_data[N * N];
static double condensed[N * (N - 1) / 2];
static float norm[D];
static int64_t prune_counts[N];

/// Where an operation writes: large enough for each of them.
static unsigned char output[N * N * sizeof(double)];

static void make_data(void) {
  uint32_t state = 1;
  for (int i = 0; i < N * D; ++i) {
    state = state * 1664525u + 1013904223u;
    rows_data[i] = (float)(state >> 8) / 16777216.0f - 0.5f;
  }
  for (int i = 0; i < N; ++i) {
    for (int j = 0; j < N; ++j) counts_data[i * N + j] = i == j ? 0 : i + j;
    prune_counts[i] = i % (D + 1);
  }
  for (int c = 0; c < D; ++c) norm[c] = (float)(c % 5);
  const stun_ext_const_matrix rows = stun_ext_const_row_major(rows_data, N, D, STUN_EXT_FLOAT32);
  OK(stun_ext_condensed_distances(&rows, condensed, N * (N - 1) / 2, NULL));
}

static stun_ext_const_matrix data(void) { return stun_ext_const_row_major(rows_data, N, D, STUN_EXT_FLOAT32); }

// Every operation that takes an executor.

static stun_ext_status run_pairwise(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  const stun_ext_matrix out = stun_ext_row_major(output, N, N, STUN_EXT_FLOAT64);
  return stun_ext_pairwise_distances(&rows, 1, &out, executor);
}

static stun_ext_status run_condensed(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  return stun_ext_condensed_distances(&rows, (double*)(void*)output, N * (N - 1) / 2, executor);
}

static stun_ext_status run_mixed(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  const stun_ext_const_matrix counts = stun_ext_const_row_major(counts_data, N, N, STUN_EXT_INT64);
  const stun_ext_matrix out = stun_ext_row_major(output, N, N, STUN_EXT_FLOAT64);
  return stun_ext_mixed_distances(&rows, &counts, 0.1, 0, &out, executor);
}

static stun_ext_status run_linkage(const stun_ext_executor* executor) {
  stun_ext_merge* merges = (stun_ext_merge*)(void*)output;
  return stun_ext_linkage(condensed, N * (N - 1) / 2, STUN_EXT_AVERAGE, merges, N - 1, executor);
}

static stun_ext_status run_linkage_rows(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  stun_ext_merge* merges = (stun_ext_merge*)(void*)output;
  int64_t count;
  return stun_ext_linkage_rows(&rows, STUN_EXT_COMPLETE, &options, merges, N - 1, &count, executor);
}

static stun_ext_status run_linkage_low_memory(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  options.memory_limit = 600000;  // the matrix takes 1 MB
  stun_ext_merge* merges = (stun_ext_merge*)(void*)output;
  int64_t count;
  return stun_ext_linkage_rows(&rows, STUN_EXT_COMPLETE, &options, merges, N - 1, &count, executor);
}

static stun_ext_status run_star_rows(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  int64_t* labels = (int64_t*)(void*)output;
  return stun_ext_star_clusters_rows(&rows, 1.7, 1, &options, labels, N, labels + N, executor);
}

static stun_ext_status run_allocate(const stun_ext_executor* executor) {
  static double layers[3][N * N];
  stun_ext_const_matrix views[3];
  for (int layer = 0; layer < 3; ++layer) {
    const stun_ext_const_matrix rows = stun_ext_const_row_major(rows_data + layer, N, D - 2, STUN_EXT_FLOAT32);
    const stun_ext_matrix out = stun_ext_row_major(layers[layer], N, N, STUN_EXT_FLOAT64);
    OK(stun_ext_pairwise_distances(&rows, 0, &out, NULL));
    views[layer] = stun_ext_const_row_major(layers[layer], N, N, STUN_EXT_FLOAT64);
  }
  int64_t* counts = (int64_t*)(void*)output;
  double* threshold = (double*)(void*)(output + 64);
  return stun_ext_allocate_experts(views, 3, 900, 1, 1, counts, 3, counts + 3, threshold, executor);
}

static stun_ext_status run_scores(const stun_ext_executor* executor) {
  const stun_ext_const_matrix weight = data();
  const stun_ext_matrix out = stun_ext_row_major(output, N, D, STUN_EXT_FLOAT32);
  return stun_ext_wanda_scores(&weight, norm, D, &out, executor);
}

static stun_ext_status run_mask(const stun_ext_executor* executor) {
  const stun_ext_const_matrix weight = data();
  const stun_ext_mask mask = {output, N, D, D};
  return stun_ext_wanda_mask(&weight, norm, D, prune_counts, N, &mask, executor);
}

static stun_ext_status run_prune(const stun_ext_executor* executor) {
  memcpy(output, rows_data, sizeof rows_data);
  const stun_ext_matrix weight = stun_ext_row_major(output, N, D, STUN_EXT_FLOAT32);
  int64_t zeros;
  return stun_ext_wanda_prune(&weight, norm, D, prune_counts, N, &zeros, executor);
}

static stun_ext_status run_nm(const stun_ext_executor* executor) {
  const stun_ext_const_matrix scores = data();
  const stun_ext_mask mask = {output, N, D, D};
  return stun_ext_nm_mask(&scores, 2, 4, &mask, executor);
}

static stun_ext_status run_apply(const stun_ext_executor* executor) {
  static uint8_t keep[N * D];
  for (int i = 0; i < N * D; ++i) keep[i] = i % 3 != 0;
  const stun_ext_mask mask = {keep, N, D, D};
  memcpy(output, rows_data, sizeof rows_data);
  const stun_ext_matrix weight = stun_ext_row_major(output, N, D, STUN_EXT_FLOAT32);
  return stun_ext_apply_mask(&weight, &mask, executor);
}

typedef stun_ext_status (*operation)(const stun_ext_executor* executor);
static const operation kOperations[] = {
    run_pairwise,  run_condensed, run_mixed,  run_linkage, run_linkage_rows, run_linkage_low_memory,
    run_star_rows, run_allocate,  run_scores, run_mask,    run_prune,        run_nm,
    run_apply,
};
enum { OPERATIONS = sizeof kOperations / sizeof *kOperations };

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
