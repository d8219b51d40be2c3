// SPDX-License-Identifier: Apache-2.0
// Usage: stun_ext_c_tests GROUP...
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

static atomic_int failures;  // of any thread

static void report(const char* file, int line) {
  ++failures;
  printf("%s:%d: ", file, line);
}

void check_true(bool condition, const char* text, const char* file, int line) {
  if (condition) return;
  report(file, line);
  printf("is not so: %s\n", text);
}

void check_status(stun_ext_status got, stun_ext_status expected, const char* part, const char* file, int line) {
  const char* message = stun_ext_last_error_message();
  if (got != expected) {
    report(file, line);
    printf("expected %s, got %s, message: %s\n", stun_ext_status_name(expected), stun_ext_status_name(got), message);
  } else if (part != NULL && strstr(message, part) == NULL) {
    report(file, line);
    printf("expected a message with \"%s\", got: %s\n", part, message);
  }
}

bool is_near(double a, double b) { return fabs(a - b) <= 1e-12 * fmax(fabs(a), fabs(b)); }

bool same_doubles(const double* a, const double* b, int64_t count) {
  return memcmp(a, b, (size_t)count * sizeof(double)) == 0;
}

bool same_ints(const int64_t* a, const int64_t* b, int64_t count) {
  return memcmp(a, b, (size_t)count * sizeof(int64_t)) == 0;
}

bool same_merge(stun_ext_merge merge, double first, double second, double height, double size) {
  return merge.first == first && merge.second == second && is_near(merge.height, height) && merge.size == size;
}

const float kPoints[4] = {0, 1, 3, 7};
const double kCondensed[6] = {1, 3, 7, 2, 6, 4};

stun_ext_const_matrix points(void) { return stun_ext_const_row_major(kPoints, 4, 1, STUN_EXT_FLOAT32); }

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)(void);
  } groups[] = {
      {"library", test_library},   {"unavailable", test_unavailable},
      {"distance", test_distance}, {"cluster", test_cluster},
      {"star", test_star},         {"mask", test_mask},
      {"experts", test_experts},   {"executor", test_executor},
      {"engine", test_engine},     {"progress", test_progress},
      {"status", test_status},     {"example", test_example},
  };
  int ran = 0;
  for (int argument = 1; argument < argc; ++argument) {
    for (size_t g = 0; g < sizeof groups / sizeof *groups; ++g) {
      if (strcmp(argv[argument], groups[g].name) != 0) continue;
      groups[g].run();
      ++ran;
    }
  }
  if (ran != argc - 1 || ran == 0) {
    printf("no such group of tests\n");
    return 2;
  }
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
