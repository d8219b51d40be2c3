// SPDX-License-Identifier: Apache-2.0
#ifndef STUN_EXT_TESTS_C_CHECK_H_
#define STUN_EXT_TESTS_C_CHECK_H_

#include <stdbool.h>

#include "stun_ext/experts.h"
#include "stun_ext/stun_ext.h"

// A group of tests goes on after a failure, and ends with exit code 1 if there was any.

/// What is expected of one call: its status, and a part of the message where it is an error.
void check_status(stun_ext_status got, stun_ext_status expected, const char* part, const char* file, int line);
void check_true(bool condition, const char* text, const char* file, int line);

#define CHECK(condition) check_true((condition), #condition, __FILE__, __LINE__)
#define OK(call) check_status((call), STUN_EXT_OK, NULL, __FILE__, __LINE__)
#define FAILS(call, status, part) check_status((call), (status), (part), __FILE__, __LINE__)
/// The error that most calls are about.
#define REFUSES(call, part) FAILS(call, STUN_EXT_INVALID_ARGUMENT, part)

bool is_near(double a, double b);
bool same_doubles(const double* a, const double* b, int64_t count);
bool same_ints(const int64_t* a, const int64_t* b, int64_t count);
bool same_merge(stun_ext_merge merge, double first, double second, double height, double size);

/// The groups, by the names that main() takes.
void test_library(void);
void test_unavailable(void);  ///< with an impossible STUN_EXT_ISA in the environment
void test_distance(void);
void test_cluster(void);
void test_star(void);
void test_mask(void);
void test_experts(void);
void test_executor(void);
void test_engine(void);
void test_progress(void);
void test_status(void);
void test_example(void);

/// One point a row: 0, 1, 3 and 7; the distances are 1, 3, 7, 2, 6 and 4.
extern const float kPoints[4];
extern const double kCondensed[6];
stun_ext_const_matrix points(void);

#endif  // STUN_EXT_TESTS_C_CHECK_H_
