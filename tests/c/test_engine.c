// SPDX-License-Identifier: Apache-2.0
// An engine: a pool of threads that lives as long as it does, shared by the operations of several requests at once.
#include <pthread.h>
#include <string.h>

#include "check.h"

enum { WORKERS = 3, REQUESTS = 4, REPEATS = 5, N = 300, D = 32 };

struct job {
  stun_ext_task task;
  void* task_context;
  int64_t count, grain, next;  ///< items from `next` on are still to be had
  int running;                 ///< ranges that are being worked on
  struct job* after;
};

struct pool {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  struct job* jobs;
  bool is_closed;
  pthread_t workers[WORKERS];
};

/// Runs one range of the job; the mutex is held before and after, not meanwhile.
static void run_range(struct pool* pool, struct job* job) {
  const int64_t begin = job->next;
  const int64_t end = job->count - begin < job->grain ? job->count : begin + job->grain;
  job->next = end;
  ++job->running;
  pthread_mutex_unlock(&pool->mutex);
  const stun_ext_status status = job->task(job->task_context, begin, end);
  pthread_mutex_lock(&pool->mutex);
  if (status != STUN_EXT_OK) job->next = job->count;
  --job->running;
  pthread_cond_broadcast(&pool->changed);
}

static void* work(void* argument) {
  struct pool* pool = argument;
  pthread_mutex_lock(&pool->mutex);
  while (!pool->is_closed) {
    struct job* job = pool->jobs;
    while (job != NULL && job->next == job->count) job = job->after;
    if (job != NULL) {
      run_range(pool, job);
    } else {
      pthread_cond_wait(&pool->changed, &pool->mutex);
    }
  }
  pthread_mutex_unlock(&pool->mutex);
  return NULL;
}

/// The calling thread works, too: a pool that is busy with other requests delays this one, and never stops it.
static stun_ext_status parallel_for(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                    void* task_context) {
  struct pool* pool = context;
  struct job job = {task, task_context, count, grain, 0, 0, NULL};
  pthread_mutex_lock(&pool->mutex);
  job.after = pool->jobs;
  pool->jobs = &job;
  pthread_cond_broadcast(&pool->changed);
  while (job.next != job.count) run_range(pool, &job);
  while (job.running > 0) pthread_cond_wait(&pool->changed, &pool->mutex);
  struct job** link = &pool->jobs;
  while (*link != &job) link = &(*link)->after;
  *link = job.after;
  pthread_mutex_unlock(&pool->mutex);
  return STUN_EXT_OK;
}

static float weights[N * D];
static stun_ext_merge expected_merges[N - 1];
static uint8_t expected_mask[N * D];

static void cluster(stun_ext_merge* merges, const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = stun_ext_const_row_major(weights, N, D, STUN_EXT_FLOAT32);
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  int64_t count = 0;
  OK(stun_ext_linkage_rows(&rows, STUN_EXT_AVERAGE, &options, merges, N - 1, &count, executor));
  CHECK(count == N - 1);
}

static void prune(uint8_t* keep, const stun_ext_executor* executor) {
  const stun_ext_const_matrix weight = stun_ext_const_row_major(weights, N, D, STUN_EXT_FLOAT32);
  const stun_ext_mask mask = {keep, N, D, D};
  int64_t counts[N];
  for (int row = 0; row < N; ++row) counts[row] = D / 2;
  OK(stun_ext_wanda_mask(&weight, NULL, 0, counts, N, &mask, executor));
}

static void* request(void* argument) {
  const stun_ext_executor* executor = argument;
  for (int repeat = 0; repeat < REPEATS; ++repeat) {
    stun_ext_merge merges[N - 1];
    static const stun_ext_merge nothing = {0};
    for (int i = 0; i < N - 1; ++i) merges[i] = nothing;
    cluster(merges, executor);
    CHECK(memcmp(merges, expected_merges, sizeof merges) == 0);
    uint8_t keep[N * D] = {0};
    prune(keep, executor);
    CHECK(memcmp(keep, expected_mask, sizeof keep) == 0);
  }
  return NULL;
}

void test_engine(void) {
  uint32_t state = 7;
  for (int i = 0; i < N * D; ++i) {
    state = state * 1664525u + 1013904223u;
    weights[i] = (float)(state >> 8) / 16777216.0f - 0.5f;
  }
  cluster(expected_merges, NULL);
  prune(expected_mask, NULL);

  struct pool pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
  for (int w = 0; w < WORKERS; ++w) CHECK(pthread_create(&pool.workers[w], NULL, work, &pool) == 0);
  stun_ext_executor executor = STUN_EXT_EXECUTOR_INIT;
  executor.concurrency = WORKERS + 1;
  executor.context = &pool;
  executor.parallel_for = parallel_for;
  pthread_t requests[REQUESTS];
  for (int r = 0; r < REQUESTS; ++r) CHECK(pthread_create(&requests[r], NULL, request, &executor) == 0);
  for (int r = 0; r < REQUESTS; ++r) pthread_join(requests[r], NULL);

  pthread_mutex_lock(&pool.mutex);
  CHECK(pool.jobs == NULL);
  pool.is_closed = true;
  pthread_cond_broadcast(&pool.changed);
  pthread_mutex_unlock(&pool.mutex);
  for (int w = 0; w < WORKERS; ++w) pthread_join(pool.workers[w], NULL);
}
