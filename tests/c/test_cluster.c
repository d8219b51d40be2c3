// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <string.h>

#include "check.h"

// Of the points' second and third merge, by method.
static const double kHeights[5][2] = {
    {2, 4}, {3, 7}, {2.5, 17.0 / 3.0}, {1.1547005383792515 * 2.5, 1.224744871391589 * 17.0 / 3.0}, {2.5, 17.0 / 3.0}};

static void test_linkage(void) {
  stun_ext_merge merges[3];
  for (stun_ext_linkage_method method = STUN_EXT_SINGLE; method <= STUN_EXT_CENTROID; ++method) {
    OK(stun_ext_linkage(kCondensed, 6, method, merges, 3, NULL));
    CHECK(same_merge(merges[0], 0, 1, 1, 2));
    CHECK(same_merge(merges[1], 2, 4, kHeights[method - 1][0], 3));
    CHECK(same_merge(merges[2], 3, 5, kHeights[method - 1][1], 4));
  }
  OK(stun_ext_linkage(NULL, 0, STUN_EXT_SINGLE, NULL, 0, NULL));  // one observation

  memset(merges, 0, sizeof merges);
  REFUSES(stun_ext_linkage(NULL, 6, STUN_EXT_SINGLE, merges, 3, NULL), "[linkage] condensed must not be null");
  REFUSES(stun_ext_linkage(kCondensed, -6, STUN_EXT_SINGLE, merges, 3, NULL), "condensed must not have a negative");
  REFUSES(stun_ext_linkage(kCondensed, 5, STUN_EXT_SINGLE, merges, 3, NULL), "got 3 and 5");
  REFUSES(stun_ext_linkage(kCondensed, 6, 0, merges, 3, NULL), "method must be one of the STUN_EXT_ linkage methods");
  REFUSES(stun_ext_linkage(kCondensed, 6, 6, merges, 3, NULL), "methods, got 6");
  REFUSES(stun_ext_linkage(kCondensed, 6, STUN_EXT_SINGLE, NULL, 3, NULL), "[linkage] merges must not be null");
  REFUSES(stun_ext_linkage(kCondensed, 6, STUN_EXT_SINGLE, merges, 2, NULL), "got 2 and 6");
  REFUSES(stun_ext_linkage(kCondensed, 6, STUN_EXT_SINGLE, merges, -1, NULL), "merges must not have a negative size");
  REFUSES(stun_ext_linkage(kCondensed, 6, STUN_EXT_SINGLE, merges, INT64_MAX, NULL), "for an n >= 1, got");
  const double with_nan[6] = {1, 3, 7, 2, NAN, 4};
  REFUSES(stun_ext_linkage(with_nan, 6, STUN_EXT_SINGLE, merges, 3, NULL), "got nan for the pair (1, 3)");
  CHECK(merges[0].size == 0.0);  // nothing was written
}

static void test_linkage_rows(void) {
  const stun_ext_const_matrix rows = points();
  const stun_ext_linkage_options defaults = STUN_EXT_LINKAGE_OPTIONS_INIT;
  stun_ext_merge merges[4];
  int64_t count = -1;
  for (stun_ext_linkage_method method = STUN_EXT_SINGLE; method <= STUN_EXT_CENTROID; ++method) {
    OK(stun_ext_linkage_rows(&rows, method, &defaults, merges, 3, &count, NULL));
    CHECK(count == 3 && same_merge(merges[0], 0, 1, 1, 2));
    CHECK(same_merge(merges[1], 2, 4, kHeights[method - 1][0], 3));
    CHECK(same_merge(merges[2], 3, 5, kHeights[method - 1][1], 4));
  }

  stun_ext_linkage_options options = defaults;
  options.n_clusters = 3;
  merges[1].size = -1.0;
  OK(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 4, &count, NULL));
  CHECK(count == 1 && same_merge(merges[0], 0, 1, 1, 2) && merges[1].size == -1.0);
  options = defaults, options.height = 2.0;
  OK(stun_ext_linkage_rows(&rows, STUN_EXT_SINGLE, &options, merges, 4, &count, NULL));
  CHECK(count == 2);
  options.height = INFINITY;
  OK(stun_ext_linkage_rows(&rows, STUN_EXT_SINGLE, &options, merges, 4, &count, NULL));
  CHECK(count == 3);

  count = -1;
  const char* const null_rows = "[linkage] rows must not be null";
  REFUSES(stun_ext_linkage_rows(NULL, STUN_EXT_WARD, &defaults, merges, 3, &count, NULL), null_rows);
  REFUSES(stun_ext_linkage_rows(&rows, -1, &defaults, merges, 3, &count, NULL), "linkage methods, got -1");
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, NULL, merges, 3, &count, NULL), "options must not be null");
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &defaults, NULL, 3, &count, NULL), "merges must not be null");
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &defaults, merges, -3, &count, NULL), "a negative size, got -3");
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &defaults, merges, 2, &count, NULL), "n-1 = 3 values, got 2");
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &defaults, merges, 3, NULL, NULL), "count must not be null");
  options = defaults, options.n_clusters = 5;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 3, &count, NULL), "must be in [1, 4], got 5");
  options = defaults, options.height = NAN;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 3, &count, NULL), "height must not be NaN");
  options = defaults, options.memory_limit = -1;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 3, &count, NULL), "memory_limit must not be");
  options = defaults, options.memory_limit = 1;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 3, &count, NULL), "memory_limit must be at");
  stun_ext_const_matrix bad = rows;
  bad.rows = INT64_MIN;
  REFUSES(stun_ext_linkage_rows(&bad, STUN_EXT_WARD, &defaults, merges, 3, &count, NULL), "[linkage]");
  bad.rows = INT64_MAX;
  REFUSES(stun_ext_linkage_rows(&bad, STUN_EXT_WARD, &defaults, merges, 3, &count, NULL), "merges must have room");
  CHECK(count == -1);
}

/// Options of another version of the header.
static void test_options_version(void) {
  const stun_ext_const_matrix rows = points();
  stun_ext_merge merges[3];
  int64_t count = -1;
  struct {
    stun_ext_linkage_options known;
    int64_t later;
  } newer = {STUN_EXT_LINKAGE_OPTIONS_INIT, 0};
  newer.known.struct_size = sizeof newer;
  OK(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &newer.known, merges, 3, &count, NULL));
  newer.later = 1;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &newer.known, merges, 3, &count, NULL), "does not know");
  newer.known.struct_size = sizeof newer.known - 1;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &newer.known, merges, 3, &count, NULL), "options.struct_size");
  newer.known.struct_size = 1 << 20;
  REFUSES(stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &newer.known, merges, 3, &count, NULL), "by its _INIT), got");
}

static void test_cut_tree(void) {
  stun_ext_merge merges[3];
  OK(stun_ext_linkage(kCondensed, 6, STUN_EXT_COMPLETE, merges, 3, NULL));
  const int64_t two[4] = {0, 0, 0, 3};
  const int64_t three[4] = {0, 0, 2, 3};
  int64_t labels[4];
  OK(stun_ext_cut_tree_count(merges, 3, 2, labels, 4));
  CHECK(same_ints(labels, two, 4));
  OK(stun_ext_cut_tree_count(merges, 1, 3, labels, 4));
  CHECK(same_ints(labels, three, 4));
  OK(stun_ext_cut_tree_height(merges, 3, 3.0, labels, 4));
  CHECK(same_ints(labels, two, 4));
  OK(stun_ext_cut_tree_height(merges, 3, 2.9, labels, 4));
  CHECK(same_ints(labels, three, 4));
  OK(stun_ext_cut_tree_count(NULL, 0, 1, labels, 1));

  labels[0] = -1;
  REFUSES(stun_ext_cut_tree_count(NULL, 3, 2, labels, 4), "[cut_tree] merges must not be null");
  REFUSES(stun_ext_cut_tree_count(merges, -1, 2, labels, 4), "merges must not have a negative size, got -1");
  REFUSES(stun_ext_cut_tree_count(merges, 3, 0, labels, 4), "n_clusters must be in [1, 4], got 0");
  REFUSES(stun_ext_cut_tree_count(merges, 1, 2, labels, 4), "n_clusters must be at least 3");
  REFUSES(stun_ext_cut_tree_count(merges, 3, 2, NULL, 4), "[cut_tree] labels must not be null");
  REFUSES(stun_ext_cut_tree_count(merges, 3, 2, labels, 3), "labels must hold one value for each");
  REFUSES(stun_ext_cut_tree_count(merges, 3, 2, labels, -4), "labels must not have a negative size, got -4");
  REFUSES(stun_ext_cut_tree_height(NULL, 3, 2.0, labels, 4), "[cut_tree] merges must not be null");
  REFUSES(stun_ext_cut_tree_height(merges, -1, 2.0, labels, 4), "merges must not have a negative size, got -1");
  REFUSES(stun_ext_cut_tree_height(merges, 3, NAN, labels, 4), "height must not be NaN");
  REFUSES(stun_ext_cut_tree_height(merges, 3, 2.0, NULL, 4), "[cut_tree] labels must not be null");
  REFUSES(stun_ext_cut_tree_height(merges, 3, 2.0, labels, 1), "labels must hold one value for each");
  merges[1].first = 0.5;
  REFUSES(stun_ext_cut_tree_height(merges, 3, 2.0, labels, 4), "first cluster of merge 1 must be an integer");
  CHECK(labels[0] == -1);
}

void test_cluster(void) {
  test_linkage();
  test_linkage_rows();
  test_options_version();
  test_cut_tree();
}
