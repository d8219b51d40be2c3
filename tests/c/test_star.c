// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "check.h"

static const double kSquare[16] = {0, 1, 3, 7, 1, 0, 2, 6, 3, 2, 0, 4, 7, 6, 4, 0};  // of the points

static stun_ext_const_matrix square(void) { return stun_ext_const_row_major(kSquare, 4, 4, STUN_EXT_FLOAT64); }

static void test_matrix(void) {
  const stun_ext_const_matrix distances = square();
  const int64_t two[4] = {0, 0, 0, 3};
  const int64_t three[4] = {0, 0, 2, 3};
  int64_t labels[4];
  int64_t n_clusters = -1;
  OK(stun_ext_star_clusters(&distances, 4.0, 1, labels, 4, &n_clusters));
  CHECK(n_clusters == 2 && same_ints(labels, two, 4));
  OK(stun_ext_star_clusters(&distances, 3.0, 1, labels, 4, &n_clusters));  // 2 is not nearer to 0 than 3
  CHECK(n_clusters == 3 && same_ints(labels, three, 4));
  OK(stun_ext_star_clusters(&distances, INFINITY, 3, labels, 4, &n_clusters));
  CHECK(n_clusters == 3 && same_ints(labels, three, 4));

  n_clusters = -1;
  REFUSES(stun_ext_star_clusters(NULL, 4.0, 1, labels, 4, &n_clusters), "[star_clusters] distances must not be null");
  REFUSES(stun_ext_star_clusters(&distances, NAN, 1, labels, 4, &n_clusters), "threshold must not be NaN");
  REFUSES(stun_ext_star_clusters(&distances, 4.0, 5, labels, 4, &n_clusters), "min_clusters must be in [1, 4], got 5");
  REFUSES(stun_ext_star_clusters(&distances, 4.0, 1, NULL, 4, &n_clusters), "labels must not be null");
  REFUSES(stun_ext_star_clusters(&distances, 4.0, 1, labels, 3, &n_clusters), "labels must hold one value for each");
  REFUSES(stun_ext_star_clusters(&distances, 4.0, 1, labels, -1, &n_clusters), "labels must not have a negative size");
  REFUSES(stun_ext_star_clusters(&distances, 4.0, 1, labels, 4, NULL), "n_clusters must not be null");
  CHECK(n_clusters == -1);
}

static void test_count(void) {
  const stun_ext_const_matrix distances = square();
  const int64_t two[4] = {0, 0, 0, 3};
  int64_t labels[4];
  double threshold = 0.0;
  OK(stun_ext_star_clusters_count(&distances, 2, labels, 4, &threshold));
  CHECK(same_ints(labels, two, 4) && threshold > 3.0);
  OK(stun_ext_star_clusters_count(&distances, 4, labels, 4, &threshold));
  CHECK(threshold == -INFINITY);

  threshold = 0.0;
  const char* const null_distances = "[star_clusters_count] distances must not be null";
  REFUSES(stun_ext_star_clusters_count(NULL, 2, labels, 4, &threshold), null_distances);
  REFUSES(stun_ext_star_clusters_count(&distances, 0, labels, 4, &threshold), "n_clusters must be in [1, 4], got 0");
  REFUSES(stun_ext_star_clusters_count(&distances, 2, NULL, 4, &threshold), "labels must not be null");
  REFUSES(stun_ext_star_clusters_count(&distances, 2, labels, 5, &threshold), "labels must hold one value for each");
  REFUSES(stun_ext_star_clusters_count(&distances, 2, labels, 4, NULL), "threshold must not be null");
  const double far[4] = {0, INFINITY, INFINITY, 0};
  const stun_ext_const_matrix apart = stun_ext_const_row_major(far, 2, 2, STUN_EXT_FLOAT64);
  REFUSES(stun_ext_star_clusters_count(&apart, 1, labels, 2, &threshold), "n_clusters must be reachable");
  CHECK(threshold == 0.0);
}

static void test_rows(void) {
  const stun_ext_const_matrix rows = points();
  const stun_ext_linkage_options defaults = STUN_EXT_LINKAGE_OPTIONS_INIT;
  const int64_t two[4] = {0, 0, 0, 3};
  int64_t labels[4];
  int64_t n = -1;
  OK(stun_ext_star_clusters_rows(&rows, 4.0, 1, &defaults, labels, 4, &n, NULL));
  CHECK(n == 2 && same_ints(labels, two, 4));

  n = -1;
  const char* const null_rows = "[star_clusters_rows] rows must not be null";
  REFUSES(stun_ext_star_clusters_rows(NULL, 4.0, 1, &defaults, labels, 4, &n, NULL), null_rows);
  REFUSES(stun_ext_star_clusters_rows(&rows, NAN, 1, &defaults, labels, 4, &n, NULL), "threshold must not be NaN");
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 0, &defaults, labels, 4, &n, NULL), "must be in [1, 4], got 0");
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, NULL, labels, 4, &n, NULL), "options must not be null");
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, &defaults, NULL, 4, &n, NULL), "labels must not be null");
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, &defaults, labels, 3, &n, NULL), "labels must hold one value");
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, &defaults, labels, 4, NULL, NULL), "n_clusters must not be null");
  stun_ext_linkage_options options = defaults;
  options.n_clusters = 2;
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, &options, labels, 4, &n, NULL),
          "are not options of the star rule");
  options = defaults, options.memory_limit = 1;
  REFUSES(stun_ext_star_clusters_rows(&rows, 4.0, 1, &options, labels, 4, &n, NULL), "memory_limit must be at least");
  CHECK(n == -1);
}

static void test_allocation(void) {
  const stun_ext_const_matrix layers[2] = {square(), square()};
  int64_t counts[2] = {-1, -1};
  int64_t reached = -1;
  double threshold = 0.0;
  OK(stun_ext_allocate_experts(layers, 2, 4, 1, 1, counts, 2, &reached, &threshold, NULL));
  CHECK(counts[0] == 2 && counts[1] == 2 && reached == 4 && threshold == 4.0);
  OK(stun_ext_allocate_experts(layers, 2, 5, 1, 1, counts, 2, &reached, &threshold, NULL));
  CHECK(counts[0] == 3 && counts[1] == 3 && reached == 6);  // of equally near totals the larger

  reached = -1;
  const char* const null_distances = "[allocate_experts] distances must not be null";
  const char* const n_group_0 = "n_group must be at least 1, got 0";
  REFUSES(stun_ext_allocate_experts(NULL, 2, 4, 1, 1, counts, 2, &reached, &threshold, NULL), null_distances);
  REFUSES(stun_ext_allocate_experts(layers, -2, 4, 1, 1, counts, 2, &reached, &threshold, NULL), "got -2");
  REFUSES(stun_ext_allocate_experts(layers, 0, 4, 1, 1, counts, 0, &reached, &threshold, NULL), "at least one layer");
  REFUSES(stun_ext_allocate_experts(layers, 2, 9, 1, 1, counts, 2, &reached, &threshold, NULL), "[2, 8], got 9");
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 5, 1, counts, 2, &reached, &threshold, NULL), "min_experts must be");
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 1, 0, counts, 2, &reached, &threshold, NULL), n_group_0);
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 1, 1, NULL, 2, &reached, &threshold, NULL),
          "counts must not be null");
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 1, 1, counts, 1, &reached, &threshold, NULL), "2 layers, got 1");
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 1, 1, counts, 2, NULL, &threshold, NULL), "reached_total must not");
  REFUSES(stun_ext_allocate_experts(layers, 2, 4, 1, 1, counts, 2, &reached, NULL, NULL), "threshold must not be null");
  stun_ext_const_matrix bad[2] = {square(), square()};
  bad[1].dtype = 0;
  REFUSES(stun_ext_allocate_experts(bad, 2, 4, 1, 1, counts, 2, &reached, &threshold, NULL), "distances.dtype");
  CHECK(counts[0] == 3 && reached == -1);
}

void test_star(void) {
  test_matrix();
  test_count();
  test_rows();
  test_allocation();
}
