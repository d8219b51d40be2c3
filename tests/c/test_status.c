// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "throwing.h"

/// Nothing but memory is short here: labels that are never reached, of more observations than there is room for.
static void test_out_of_memory(void) {
  int64_t label;
#ifndef STOPS_AT_LARGE_ALLOCATIONS  // as sanitizers do
  FAILS(stun_ext_cut_tree_count(NULL, 0, (int64_t)1 << 46, &label, (int64_t)1 << 46), STUN_EXT_OUT_OF_MEMORY,
        "out of memory");
#endif
  FAILS(stun_ext_cut_tree_count(NULL, 0, (int64_t)1 << 61, &label, (int64_t)1 << 61), STUN_EXT_OUT_OF_MEMORY,
        "out of memory");
}

static void test_exceptions(void) {
  const stun_ext_const_matrix rows = points();
  double out[6];
  int which = THROWS_BAD_ALLOC;
  stun_ext_executor executor = STUN_EXT_EXECUTOR_INIT;
  executor.context = &which;
  executor.parallel_for = throwing_parallel_for;
  FAILS(stun_ext_condensed_distances(&rows, out, 6, &executor), STUN_EXT_OUT_OF_MEMORY, "out of memory");
  which = THROWS_LENGTH_ERROR;
  FAILS(stun_ext_condensed_distances(&rows, out, 6, &executor), STUN_EXT_OUT_OF_MEMORY, "out of memory");
  which = THROWS_NUMBER;
  FAILS(stun_ext_condensed_distances(&rows, out, 6, &executor), STUN_EXT_INTERNAL, "an exception of unknown type");
  which = THROWS_LONG_ERROR;
  FAILS(stun_ext_condensed_distances(&rows, out, 6, &executor), STUN_EXT_INTERNAL, "xxx");
  CHECK(strlen(stun_ext_last_error_message()) == 1023);
}

static void* other_thread(void* argument) {
  (void)argument;
  CHECK(strcmp(stun_ext_last_error_message(), "") == 0);
  REFUSES(stun_ext_set_num_threads(-7), "got -7");
  return NULL;
}

static void test_message_of_thread(void) {
  REFUSES(stun_ext_set_num_threads(-1), "got -1");
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, other_thread, NULL) == 0);
  pthread_join(thread, NULL);
  CHECK(strstr(stun_ext_last_error_message(), "got -1") != NULL);
  OK(stun_ext_set_num_threads(stun_ext_num_threads()));
  CHECK(strstr(stun_ext_last_error_message(), "got -1") != NULL);  // of the last call that failed
}

void test_status(void) {
  test_out_of_memory();
  test_exceptions();
  test_message_of_thread();
}
