/* SPDX-License-Identifier: Apache-2.0 */
/* The same in C, with the C library. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <stun_ext/stun_ext.h>

int main(void) {
  const float router[8] = {0, 0, 0, 1, 9, 9, 9, 8};
  const stun_ext_const_matrix rows = stun_ext_const_row_major(router, 4, 2, STUN_EXT_FLOAT32);
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  stun_ext_merge merges[3];
  int64_t count = 0;
  int64_t labels[4] = {-1, -1, -1, -1};
  if (stun_ext_linkage_rows(&rows, STUN_EXT_WARD, &options, merges, 3, &count, NULL) != STUN_EXT_OK ||
      stun_ext_cut_tree_count(merges, count, 2, labels, 4) != STUN_EXT_OK) {
    fprintf(stderr, "%s\n", stun_ext_last_error_message());
    return 1;
  }

  float values[4] = {1, -4, 2, 3};
  const stun_ext_matrix weight = stun_ext_row_major(values, 1, 4, STUN_EXT_FLOAT32);
  const int64_t prune = 2;
  int64_t zeros = 0;
  if (stun_ext_wanda_prune(&weight, NULL, 0, &prune, 1, &zeros, NULL) != STUN_EXT_OK) {
    fprintf(stderr, "%s\n", stun_ext_last_error_message());
    return 1;
  }

  const stun_ext_status refused = stun_ext_cut_tree_count(merges, count, 5, labels, 4);
  printf("stun_ext %s: %d merges, %d zeros, then: %s\n", stun_ext_version(), (int)count, (int)zeros,
         stun_ext_last_error_message());
  const int64_t expected[4] = {0, 0, 2, 2};
  const int is_right = memcmp(labels, expected, sizeof(expected)) == 0 && values[0] == 0 && values[1] == -4 &&
                       values[2] == 0 && values[3] == 3 && zeros == 2 && refused == STUN_EXT_INVALID_ARGUMENT;
  return is_right ? 0 : 1;
}
