// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <string.h>

#include "check.h"

static void test_views(void) {
  // What can be wrong with a matrix, by the function with one of each kind.
  double out[16];
  const stun_ext_matrix good_out = stun_ext_row_major(out, 4, 4, STUN_EXT_FLOAT64);
  const char* const operation = "[pairwise_distances] ";
  memset(out, 0x55, sizeof out);
  double before[16];
  memcpy(before, out, sizeof out);

  const stun_ext_const_matrix good = points();
  REFUSES(stun_ext_pairwise_distances(NULL, 0, &good_out, NULL), "[pairwise_distances] rows must not be null");
  REFUSES(stun_ext_pairwise_distances(&good, 0, NULL, NULL), "[pairwise_distances] out must not be null");
  stun_ext_const_matrix rows = good;
  rows.data = NULL;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "rows must not be null, got [4, 1] elements");
  rows = good, rows.dtype = 0;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "rows.dtype must be one of the STUN_EXT_");
  rows = good, rows.dtype = STUN_EXT_INT64 + 1;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "element types, got 6");
  rows = good, rows.dtype = STUN_EXT_INT64;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "rows must be one of float32");
  rows = good, rows.reserved = 7;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "rows.reserved must be 0, got 7");
  rows = good, rows.rows = -4;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), operation);
  rows = good, rows.rows = 3;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "out must be [3, 3], got [4, 4]");
  const float with_nan[4] = {0, 1, NAN, 7};
  rows = good, rows.data = with_nan;
  REFUSES(stun_ext_pairwise_distances(&rows, 0, &good_out, NULL), "rows must be finite, got nan in row 2, column 0");
  const float zeros[4] = {0};
  rows = good, rows.data = zeros;
  REFUSES(stun_ext_pairwise_distances(&rows, 1, &good_out, NULL), "must not all be zero");

  stun_ext_matrix bad_out = good_out;
  bad_out.data = NULL;
  REFUSES(stun_ext_pairwise_distances(&good, 0, &bad_out, NULL), "out must not be null, got [4, 4] elements");
  bad_out = good_out, bad_out.dtype = STUN_EXT_BFLOAT16;
  REFUSES(stun_ext_pairwise_distances(&good, 0, &bad_out, NULL), "out must be one of float32, float64, got bfloat16");
  bad_out = good_out, bad_out.dtype = -1;
  REFUSES(stun_ext_pairwise_distances(&good, 0, &bad_out, NULL), "out.dtype must be one of the STUN_EXT_");
  bad_out = good_out, bad_out.reserved = 1;
  REFUSES(stun_ext_pairwise_distances(&good, 0, &bad_out, NULL), "out.reserved must be 0, got 1");
  bad_out = good_out, bad_out.row_stride = 0;
  REFUSES(stun_ext_pairwise_distances(&good, 0, &bad_out, NULL), "out must not overlap itself");
  CHECK(same_doubles(out, before, 16));  // nothing was written
}

static void test_pairwise(void) {
  const double expected[16] = {0, 1, 3, 7, 1, 0, 2, 6, 3, 2, 0, 4, 7, 6, 4, 0};
  double out[16];
  const stun_ext_matrix matrix = stun_ext_row_major(out, 4, 4, STUN_EXT_FLOAT64);
  stun_ext_const_matrix rows = points();
  OK(stun_ext_pairwise_distances(&rows, 0, &matrix, NULL));
  CHECK(same_doubles(out, expected, 16));
  OK(stun_ext_pairwise_distances(&rows, 1, &matrix, NULL));
  for (int i = 0; i < 16; ++i) CHECK(is_near(out[i] * sqrt(59.0), expected[i]));

  // Every dtype and a stride: 0, 1, 3, 7 in every second element.
  const double f64[8] = {0, -1, 1, -1, 3, -1, 7, -1};
  const uint16_t f16[8] = {0x0000, 1, 0x3c00, 1, 0x4200, 1, 0x4700, 1};
  const uint16_t bf16[8] = {0x0000, 1, 0x3f80, 1, 0x4040, 1, 0x40e0, 1};
  const struct {
    const void* data;
    stun_ext_dtype dtype;
  } inputs[] = {{f64, STUN_EXT_FLOAT64}, {f16, STUN_EXT_FLOAT16}, {bf16, STUN_EXT_BFLOAT16}};
  for (int i = 0; i < 3; ++i) {
    rows.data = inputs[i].data, rows.dtype = inputs[i].dtype, rows.row_stride = 2;
    OK(stun_ext_pairwise_distances(&rows, 0, &matrix, NULL));
    CHECK(same_doubles(out, expected, 16));
  }

  float narrow[24];  // written through strides that leave gaps
  for (int i = 0; i < 24; ++i) narrow[i] = -1.0f;
  const stun_ext_matrix strided = {narrow, 4, 4, 1, 6, STUN_EXT_FLOAT32, 0};
  rows = points();
  OK(stun_ext_pairwise_distances(&rows, 0, &strided, NULL));
  for (int col = 0; col < 4; ++col) {
    for (int row = 0; row < 4; ++row) CHECK(narrow[col * 6 + row] == (float)expected[row * 4 + col]);
    CHECK(narrow[col * 6 + 4] == -1.0f && narrow[col * 6 + 5] == -1.0f);
  }
}

static void test_condensed(void) {
  const stun_ext_const_matrix rows = points();
  double out[6];
  OK(stun_ext_condensed_distances(&rows, out, 6, NULL));
  CHECK(same_doubles(out, kCondensed, 6));
  REFUSES(stun_ext_condensed_distances(NULL, out, 6, NULL), "[condensed_distances] rows must not be null");
  REFUSES(stun_ext_condensed_distances(&rows, NULL, 6, NULL), "[condensed_distances] out must not be null");
  REFUSES(stun_ext_condensed_distances(&rows, out, 5, NULL), "out must hold n(n-1)/2 = 6 values");
  REFUSES(stun_ext_condensed_distances(&rows, out, -6, NULL), "out must not have a negative size, got -6");
  const stun_ext_const_matrix one = stun_ext_const_row_major(kPoints, 1, 4, STUN_EXT_FLOAT32);
  OK(stun_ext_condensed_distances(&one, NULL, 0, NULL));  // one row has no pairs
}

static void test_coactivation(void) {
  const int64_t counts[9] = {0, 3, 0, 3, 0, 6, 0, 6, 0};  // mean 2
  const double expected[9] = {0, -1.5, 0, -1.5, 0, -3, 0, -3, 0};
  const stun_ext_const_matrix a = stun_ext_const_row_major(counts, 3, 3, STUN_EXT_INT64);
  double out[9];
  const stun_ext_matrix matrix = stun_ext_row_major(out, 3, 3, STUN_EXT_FLOAT64);
  OK(stun_ext_coactivation_distances(&a, &matrix));
  CHECK(same_doubles(out, expected, 9));
  REFUSES(stun_ext_coactivation_distances(NULL, &matrix), "[coactivation_distances] counts must not be null");
  REFUSES(stun_ext_coactivation_distances(&a, NULL), "[coactivation_distances] out must not be null");
  const int64_t asymmetric[9] = {0, 3, 0, 3, 0, 6, 0, 7, 0};
  const stun_ext_const_matrix bad = stun_ext_const_row_major(asymmetric, 3, 3, STUN_EXT_INT64);
  REFUSES(stun_ext_coactivation_distances(&bad, &matrix), "counts must be symmetric");

  const float router[3] = {0, 1, 3};
  const stun_ext_const_matrix rows = stun_ext_const_row_major(router, 3, 1, STUN_EXT_FLOAT32);
  const double mixed[9] = {0, 0.25, 3, 0.25, 0, 0.5, 3, 0.5, 0};
  OK(stun_ext_mixed_distances(&rows, &a, 0.5, 0, &matrix, NULL));
  CHECK(same_doubles(out, mixed, 9));
  OK(stun_ext_mixed_distances(&rows, &a, 0.0, 1, &matrix, NULL));
  CHECK(is_near(out[2], 3.0 / sqrt(10.0)));
  REFUSES(stun_ext_mixed_distances(NULL, &a, 0.5, 0, &matrix, NULL), "[mixed_distances] rows must not be null");
  REFUSES(stun_ext_mixed_distances(&rows, NULL, 0.5, 0, &matrix, NULL), "[mixed_distances] counts must not be null");
  REFUSES(stun_ext_mixed_distances(&rows, &a, NAN, 0, &matrix, NULL), "mix must be finite, got nan");
  REFUSES(stun_ext_mixed_distances(&rows, &a, 0.5, 0, NULL, NULL), "[mixed_distances] out must not be null");
}

void test_distance(void) {
  test_views();
  test_pairwise();
  test_condensed();
  test_coactivation();
}
