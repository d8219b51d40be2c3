// SPDX-License-Identifier: Apache-2.0
#ifndef STUN_EXT_TESTS_C_OPERATIONS_H_
#define STUN_EXT_TESTS_C_OPERATIONS_H_

#include "stun_ext/stun_ext.h"

/// Every operation that takes an executor, on data that is large enough for several ranges.
typedef stun_ext_status (*operation)(const stun_ext_executor* executor);
enum { OPERATIONS = 16 };
extern const operation kOperations[OPERATIONS];

/// One of them by its name.
stun_ext_status run_condensed(const stun_ext_executor* executor);

/// Before any of them is run.
void make_data(void);

/// Where they write.
enum { OUTPUT_SIZE = 400 * 400 * 8 };
extern unsigned char output[OUTPUT_SIZE];

#endif  // STUN_EXT_TESTS_C_OPERATIONS_H_
