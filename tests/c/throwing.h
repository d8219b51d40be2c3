// SPDX-License-Identifier: Apache-2.0
#ifndef STUN_EXT_TESTS_C_THROWING_H_
#define STUN_EXT_TESTS_C_THROWING_H_

#include "stun_ext/stun_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { THROWS_BAD_ALLOC, THROWS_LENGTH_ERROR, THROWS_LONG_ERROR, THROWS_NUMBER };

/// An executor's parallel_for, in C++; `context` points to an int: which of the above it throws.
stun_ext_status throwing_parallel_for(void* context, int64_t count, int64_t grain, stun_ext_task task,
                                      void* task_context);

#ifdef __cplusplus
}
#endif

#endif  // STUN_EXT_TESTS_C_THROWING_H_
