// SPDX-License-Identifier: Apache-2.0
#include "operations.h"

#include <string.h>

#include "check.h"
#include "stun_ext/experts.h"

enum { N = 400, D = 24 };

static float rows_data[N * D];
static int64_t counts_data[N * N];
static double condensed[N * (N - 1) / 2];
static float norm[D];
static int64_t prune_counts[N];

unsigned char output[OUTPUT_SIZE];  // as large as a matrix of distances

void make_data(void) {
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

static stun_ext_status run_pairwise(const stun_ext_executor* executor) {
  const stun_ext_const_matrix rows = data();
  const stun_ext_matrix out = stun_ext_row_major(output, N, N, STUN_EXT_FLOAT64);
  return stun_ext_pairwise_distances(&rows, 1, &out, executor);
}

stun_ext_status run_condensed(const stun_ext_executor* executor) {
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

static stun_ext_status run_nm_prune(const stun_ext_executor* executor) {
  memcpy(output, rows_data, sizeof rows_data);
  const stun_ext_matrix weight = stun_ext_row_major(output, N, D, STUN_EXT_FLOAT32);
  int64_t zeros;
  return stun_ext_nm_prune(&weight, norm, D, 2, 4, &zeros, executor);
}

static stun_ext_status run_apply(const stun_ext_executor* executor) {
  static uint8_t keep[N * D];
  for (int i = 0; i < N * D; ++i) keep[i] = i % 3 != 0;
  const stun_ext_mask mask = {keep, N, D, D};
  memcpy(output, rows_data, sizeof rows_data);
  const stun_ext_matrix weight = stun_ext_row_major(output, N, D, STUN_EXT_FLOAT32);
  return stun_ext_apply_mask(&weight, &mask, executor);
}

static stun_ext_status run_packed_matmul(const stun_ext_executor* executor) {
  const stun_ext_const_matrix weight = data();
  stun_ext_packed* packed = NULL;
  OK(stun_ext_pack(&weight, &packed, NULL));
  const stun_ext_matrix out = stun_ext_row_major(output, N, N, STUN_EXT_FLOAT32);
  const stun_ext_status status = stun_ext_packed_matmul(&weight, packed, &out, executor);
  stun_ext_packed_free(packed);
  return status;
}

/// N experts from D to D columns, the first ones of each token.
static stun_ext_status run_experts(const stun_ext_executor* executor) {
  enum { EXPERTS = 8, TOKENS = 100, PER_TOKEN = 2 };
  static int64_t index[TOKENS * PER_TOKEN];
  stun_ext_expert_weight up[EXPERTS] = {{NULL, {NULL, 0, 0, 0, 0, 0, 0}}},
                         down[EXPERTS] = {{NULL, {NULL, 0, 0, 0, 0, 0, 0}}};
  for (int e = 0; e < EXPERTS; ++e) {
    up[e].dense = stun_ext_const_row_major(rows_data + e, 2 * D, D, STUN_EXT_FLOAT32);
    down[e].dense = stun_ext_const_row_major(rows_data + D + e, D, D, STUN_EXT_FLOAT32);
  }
  for (int i = 0; i < TOKENS * PER_TOKEN; ++i) index[i] = i * 5 % EXPERTS;
  const stun_ext_expert_options options = STUN_EXT_EXPERT_OPTIONS_INIT;
  stun_ext_experts* experts = NULL;
  OK(stun_ext_experts_create(up, EXPERTS, down, EXPERTS, &options, &experts));
  const stun_ext_const_matrix x = stun_ext_const_row_major(rows_data, TOKENS, D, STUN_EXT_FLOAT32);
  const stun_ext_const_matrix ids = stun_ext_const_row_major(index, TOKENS, PER_TOKEN, STUN_EXT_INT64);
  const stun_ext_const_matrix weights = stun_ext_const_row_major(rows_data, TOKENS, PER_TOKEN, STUN_EXT_FLOAT32);
  const stun_ext_matrix out = stun_ext_row_major(output, TOKENS, D, STUN_EXT_FLOAT32);
  const stun_ext_status status = stun_ext_expert_forward(&x, &ids, &weights, experts, &out, executor);
  stun_ext_experts_free(experts);
  return status;
}

const operation kOperations[OPERATIONS] = {
    run_pairwise,  run_condensed, run_mixed,         run_linkage, run_linkage_rows, run_linkage_low_memory,
    run_star_rows, run_allocate,  run_scores,        run_mask,    run_prune,        run_nm,
    run_nm_prune,  run_apply,     run_packed_matmul, run_experts,
};
