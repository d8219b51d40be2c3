// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <string.h>

#include "check.h"

// Scores 4, 4, 2, 3 and 8, 0, 2, 9.
static const float kWeight[8] = {1, -4, 2, 3, -2, 0, 2, -9};
static const float kNorm[4] = {16, 1, 1, 1};
static const int64_t kCounts[2] = {2, 1};
static const uint8_t kKeep[8] = {1, 1, 0, 0, 1, 0, 1, 1};

static stun_ext_const_matrix weight(void) { return stun_ext_const_row_major(kWeight, 2, 4, STUN_EXT_FLOAT32); }

static bool same_bytes(const void* a, const void* b, size_t size) { return memcmp(a, b, size) == 0; }

static void test_scores(void) {
  const float expected[8] = {4, 4, 2, 3, 8, 0, 2, 9};
  const float magnitude[8] = {1, 4, 2, 3, 2, 0, 2, 9};
  const stun_ext_const_matrix w = weight();
  float out[8] = {-1};
  const stun_ext_matrix matrix = stun_ext_row_major(out, 2, 4, STUN_EXT_FLOAT32);
  REFUSES(stun_ext_wanda_scores(NULL, kNorm, 4, &matrix, NULL), "[wanda_scores] weight must not be null");
  REFUSES(stun_ext_wanda_scores(&w, NULL, 4, &matrix, NULL), "[wanda_scores] input_sq_norm must not be null");
  REFUSES(stun_ext_wanda_scores(&w, kNorm, 3, &matrix, NULL), "each of the 4 columns, got 3");
  REFUSES(stun_ext_wanda_scores(&w, kNorm, -4, &matrix, NULL), "input_sq_norm must not have a negative size, got -4");
  REFUSES(stun_ext_wanda_scores(&w, kNorm, 4, NULL, NULL), "[wanda_scores] out must not be null");
  const float negative[4] = {1, 1, -1, 1};
  REFUSES(stun_ext_wanda_scores(&w, negative, 4, &matrix, NULL), "got -1 for feature 2");
  CHECK(out[0] == -1.0f);
  OK(stun_ext_wanda_scores(&w, kNorm, 4, &matrix, NULL));
  CHECK(same_bytes(out, expected, sizeof out));
  OK(stun_ext_wanda_scores(&w, NULL, 0, &matrix, NULL));
  CHECK(same_bytes(out, magnitude, sizeof out));
}

static void test_pruned_per_row(void) {
  int64_t count = -1;
  REFUSES(stun_ext_pruned_per_row(-1, 0.5, &count), "[pruned_per_row] cols must not be negative, got -1");
  REFUSES(stun_ext_pruned_per_row(10, 1.0, &count), "sparsity must be in [0, 1), got 1");
  REFUSES(stun_ext_pruned_per_row(10, NAN, &count), "sparsity must be in [0, 1), got nan");
  REFUSES(stun_ext_pruned_per_row(10, 0.5, NULL), "[pruned_per_row] count must not be null");
  CHECK(count == -1);
  OK(stun_ext_pruned_per_row(10, 0.39, &count));
  CHECK(count == 3);
}

static void test_wanda_mask(void) {
  const stun_ext_const_matrix w = weight();
  uint8_t keep[12];
  memset(keep, 9, sizeof keep);
  const stun_ext_mask mask = {keep, 2, 4, 6};
  REFUSES(stun_ext_wanda_mask(NULL, kNorm, 4, kCounts, 2, &mask, NULL), "[wanda_mask] weight must not be null");
  REFUSES(stun_ext_wanda_mask(&w, NULL, 4, kCounts, 2, &mask, NULL), "[wanda_mask] input_sq_norm must not be null");
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 5, kCounts, 2, &mask, NULL), "each of the 4 columns, got 5");
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, NULL, 2, &mask, NULL), "[wanda_mask] prune_counts must not be null");
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 1, &mask, NULL), "each of the 2 rows, got 1");
  const int64_t too_many[2] = {2, 5};
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, too_many, 2, &mask, NULL), "must be in [0, 4], got 5 for row 1");
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 2, NULL, NULL), "[wanda_mask] mask must not be null");
  stun_ext_mask bad = mask;
  bad.data = NULL;
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 2, &bad, NULL), "[wanda_mask] mask must not be null");
  bad = mask, bad.cols = 3;
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 2, &bad, NULL), "mask must be [2, 4], got [2, 3]");
  bad = mask, bad.row_stride = 3;
  REFUSES(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 2, &bad, NULL), "mask rows must not overlap, got row stride 3");
  for (int i = 0; i < 12; ++i) CHECK(keep[i] == 9);
  OK(stun_ext_wanda_mask(&w, kNorm, 4, kCounts, 2, &mask, NULL));
  CHECK(same_bytes(keep, kKeep, 4) && same_bytes(keep + 6, kKeep + 4, 4));
  CHECK(keep[4] == 9 && keep[5] == 9 && keep[10] == 9 && keep[11] == 9);
}

static void test_wanda_prune(void) {
  float data[8];
  memcpy(data, kWeight, sizeof data);
  const stun_ext_matrix w = stun_ext_row_major(data, 2, 4, STUN_EXT_FLOAT32);
  int64_t zeros = -1;
  REFUSES(stun_ext_wanda_prune(NULL, kNorm, 4, kCounts, 2, &zeros, NULL), "[wanda_prune] weight must not be null");
  REFUSES(stun_ext_wanda_prune(&w, NULL, 4, kCounts, 2, &zeros, NULL), "[wanda_prune] input_sq_norm must not be null");
  REFUSES(stun_ext_wanda_prune(&w, kNorm, -1, kCounts, 2, &zeros, NULL), "input_sq_norm must not have a negative");
  REFUSES(stun_ext_wanda_prune(&w, kNorm, 4, NULL, 2, &zeros, NULL), "[wanda_prune] prune_counts must not be null");
  REFUSES(stun_ext_wanda_prune(&w, kNorm, 4, kCounts, -2, &zeros, NULL), "prune_counts must not have a negative size");
  REFUSES(stun_ext_wanda_prune(&w, kNorm, 4, kCounts, 2, NULL, NULL), "[wanda_prune] zeros must not be null");
  stun_ext_matrix bad = w;
  bad.dtype = STUN_EXT_FLOAT64;
  REFUSES(stun_ext_wanda_prune(&bad, kNorm, 4, kCounts, 2, &zeros, NULL), "weight must be one of float32");
  CHECK(same_bytes(data, kWeight, sizeof data) && zeros == -1);
  OK(stun_ext_wanda_prune(&w, kNorm, 4, kCounts, 2, &zeros, NULL));
  const float expected[8] = {1, -4, 0, 0, -2, 0, 2, -9};
  CHECK(same_bytes(data, expected, sizeof data) && zeros == 3);
}

static void test_nm_prune(void) {
  float data[8];
  memcpy(data, kWeight, sizeof data);
  const stun_ext_matrix w = stun_ext_row_major(data, 2, 4, STUN_EXT_FLOAT32);
  int64_t zeros = -1;
  REFUSES(stun_ext_nm_prune(NULL, kNorm, 4, 2, 4, &zeros, NULL), "[nm_prune] weight must not be null");
  REFUSES(stun_ext_nm_prune(&w, NULL, 4, 2, 4, &zeros, NULL), "[nm_prune] input_sq_norm must not be null");
  REFUSES(stun_ext_nm_prune(&w, kNorm, 4, 4, 4, &zeros, NULL), "n must be in [1, 3], got 4");
  REFUSES(stun_ext_nm_prune(&w, kNorm, 4, 1, 3, &zeros, NULL), "a multiple of m = 3 columns, got 4");
  REFUSES(stun_ext_nm_prune(&w, kNorm, 4, 2, 4, NULL, NULL), "[nm_prune] zeros must not be null");
  CHECK(same_bytes(data, kWeight, sizeof data) && zeros == -1);
  OK(stun_ext_nm_prune(&w, NULL, 0, 2, 4, &zeros, NULL));  // by magnitude: {1, -4, 2, 3} and {-2, 0, 2, -9}
  const float expected[8] = {0, -4, 0, 3, 0, 0, 2, -9};
  CHECK(same_bytes(data, expected, sizeof data) && zeros == 4);
}

static void test_nm_and_apply(void) {
  const float scores[8] = {4, 4, 2, 3, 8, 0, 2, 9};
  const uint8_t two_of_four[8] = {1, 1, 0, 0, 1, 0, 0, 1};
  const uint8_t one_of_two[8] = {0, 1, 0, 1, 1, 0, 0, 1};  // the tie prunes the lower column
  const stun_ext_const_matrix s = stun_ext_const_row_major(scores, 2, 4, STUN_EXT_FLOAT32);
  uint8_t keep[8] = {9};
  const stun_ext_mask mask = {keep, 2, 4, 4};
  REFUSES(stun_ext_nm_mask(NULL, 2, 4, &mask, NULL), "[nm_mask] scores must not be null");
  REFUSES(stun_ext_nm_mask(&s, 4, 4, &mask, NULL), "n must be in [1, 3], got 4");
  REFUSES(stun_ext_nm_mask(&s, 1, 1, &mask, NULL), "m must be at least 2, got 1");
  REFUSES(stun_ext_nm_mask(&s, 1, 3, &mask, NULL), "a multiple of m = 3 columns, got 4");
  REFUSES(stun_ext_nm_mask(&s, 2, 4, NULL, NULL), "[nm_mask] mask must not be null");
  CHECK(keep[0] == 9);
  OK(stun_ext_nm_mask(&s, 1, 2, &mask, NULL));
  CHECK(same_bytes(keep, one_of_two, 8));
  OK(stun_ext_nm_mask(&s, 2, 4, &mask, NULL));
  CHECK(same_bytes(keep, two_of_four, 8));

  uint16_t bits[8] = {0x3f80, 0xbf80, 0x8000, 0x7fc0, 1, 2, 3, 4};  // whatever they mean, those kept stay
  const uint16_t before[8] = {0x3f80, 0xbf80, 0x8000, 0x7fc0, 1, 2, 3, 4};
  const uint16_t expected[8] = {0x3f80, 0xbf80, 0, 0, 1, 0, 0, 4};
  const stun_ext_matrix w = stun_ext_row_major(bits, 2, 4, STUN_EXT_BFLOAT16);
  REFUSES(stun_ext_apply_mask(NULL, &mask, NULL), "[apply_mask] weight must not be null");
  REFUSES(stun_ext_apply_mask(&w, NULL, NULL), "[apply_mask] mask must not be null");
  const stun_ext_mask narrow = {keep, 2, 2, 4};
  REFUSES(stun_ext_apply_mask(&w, &narrow, NULL), "mask must be [2, 4], got [2, 2]");
  CHECK(same_bytes(bits, before, sizeof bits));
  OK(stun_ext_apply_mask(&w, &mask, NULL));
  CHECK(same_bytes(bits, expected, sizeof bits));
}

void test_mask(void) {
  test_scores();
  test_pruned_per_row();
  test_wanda_mask();
  test_wanda_prune();
  test_nm_prune();
  test_nm_and_apply();
}
