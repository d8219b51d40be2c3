// SPDX-License-Identifier: Apache-2.0
// The example in the header's comment, which the build extracts.
#include <stdlib.h>

#include "check.h"
#include "example.c"

void test_example(void) {
  uint16_t* router = calloc((size_t)128 * 4096, sizeof *router);
  CHECK(router != NULL);
  if (router == NULL) return;
  // Expert e differs from expert e − 40 in little, and from the others in much.
  for (int64_t e = 0; e < 128; ++e) {
    router[e * 4096 + e % 40] = 0x42c8;            // 100
    router[e * 4096 + 100] = e < 40 ? 0 : 0x3f80;  // 1
  }
  int64_t labels[128];
  CHECK(keep_forty_experts(router, labels) == 0);
  for (int64_t e = 0; e < 128; ++e) CHECK(labels[e] == e % 40);
  free(router);
}
