// SPDX-License-Identifier: Apache-2.0
#include "check.h"

enum { N = 400, D = 8 };

static float rows_data[N * D];

struct told {
  int calls;
  double last;
  stun_ext_status answer;
};

static stun_ext_status tell(void* context, double fraction) {
  struct told* told = context;
  CHECK(fraction >= 0.0 && fraction <= 1.0 && fraction >= told->last);
  told->last = fraction;
  ++told->calls;
  return told->answer;
}

static stun_ext_status run_linkage(stun_ext_linkage_options* options) {
  const stun_ext_const_matrix rows = stun_ext_const_row_major(rows_data, N, D, STUN_EXT_FLOAT32);
  stun_ext_merge merges[N - 1];
  int64_t count;
  return stun_ext_linkage_rows(&rows, STUN_EXT_WARD, options, merges, N - 1, &count, NULL);
}

static stun_ext_status run_star(stun_ext_linkage_options* options) {
  const stun_ext_const_matrix rows = stun_ext_const_row_major(rows_data, N, D, STUN_EXT_FLOAT32);
  int64_t labels[N];
  int64_t n_clusters;
  return stun_ext_star_clusters_rows(&rows, 0.5, 1, options, labels, N, &n_clusters, NULL);
}

static void test_operation(stun_ext_status (*run)(stun_ext_linkage_options*), int64_t memory_limit,
                           const char* operation) {
  struct told told = {0, 0.0, STUN_EXT_OK};
  stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  options.memory_limit = memory_limit;
  options.progress = tell;
  options.progress_context = &told;
  OK(run(&options));
  CHECK(told.calls > 0);

  told = (struct told){0, 0.0, STUN_EXT_CANCELLED};
  FAILS(run(&options), STUN_EXT_CANCELLED, operation);
  CHECK(told.calls == 1);

  told = (struct told){0, 0.0, 17};
  FAILS(run(&options), STUN_EXT_CALLBACK_FAILED, "options.progress must return STUN_EXT_OK or STUN_EXT_CANCELLED, got");
  CHECK(told.calls == 1);
}

void test_progress(void) {
  uint32_t state = 1;
  for (int i = 0; i < N * D; ++i) {
    state = state * 1664525u + 1013904223u;
    rows_data[i] = (float)(state >> 8) / 16777216.0f;
  }
  test_operation(run_linkage, 0, "[linkage] stopped by its progress");
  test_operation(run_linkage, 600000, "[linkage] stopped by its progress");  // in passes: the matrix takes 1 MB
  test_operation(run_star, 0, "[star_clusters_rows] stopped by its progress");
}
