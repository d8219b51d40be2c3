// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "check.h"

static void test_names(void) {
  CHECK(strcmp(stun_ext_version(), EXPECTED_VERSION) == 0);

  const char* const statuses[] = {"STUN_EXT_OK",
                                  "STUN_EXT_INVALID_ARGUMENT",
                                  "STUN_EXT_UNAVAILABLE",
                                  "STUN_EXT_CANCELLED",
                                  "STUN_EXT_OUT_OF_MEMORY",
                                  "STUN_EXT_CALLBACK_FAILED",
                                  "STUN_EXT_INTERNAL",
                                  "unknown"};
  for (int status = 0; status <= STUN_EXT_INTERNAL + 1; ++status) {
    CHECK(strcmp(stun_ext_status_name(status), statuses[status]) == 0);
  }
  CHECK(strcmp(stun_ext_status_name(-1), "unknown") == 0);

  const char* const dtypes[] = {"unknown", "float32", "float16", "bfloat16", "float64", "int64", "unknown"};
  const int64_t sizes[] = {0, 4, 2, 2, 8, 8, 0};
  for (int dtype = 0; dtype <= STUN_EXT_INT64 + 1; ++dtype) {
    CHECK(strcmp(stun_ext_dtype_name(dtype), dtypes[dtype]) == 0);
    CHECK(stun_ext_dtype_size(dtype) == sizes[dtype]);
  }

  const char* const isas[] = {"unknown", "scalar", "avx2", "avx512", "neon", "unknown"};
  for (int isa = 0; isa <= STUN_EXT_NEON + 1; ++isa) CHECK(strcmp(stun_ext_isa_name(isa), isas[isa]) == 0);
}

static void test_processor(void) {
  const char* model = NULL;
  const char* features = NULL;
  OK(stun_ext_cpu_model(&model));
  OK(stun_ext_cpu_features(&features));
  CHECK(model != NULL && features != NULL);
  const char* again = NULL;
  OK(stun_ext_cpu_model(&again));
  CHECK(model == again);  // lives as long as the library
  REFUSES(stun_ext_cpu_model(NULL), "[cpu_model] model must not be null");
  REFUSES(stun_ext_cpu_features(NULL), "[cpu_features] features must not be null");

  stun_ext_isa before = 0;
  OK(stun_ext_get_isa(&before));
  int usable = 0;
  for (stun_ext_isa isa = STUN_EXT_SCALAR; isa <= STUN_EXT_NEON; ++isa) {
    int32_t supported = -1;
    OK(stun_ext_isa_supported(isa, &supported));
    CHECK(supported == 0 || supported == 1);
    if (supported) {
      OK(stun_ext_set_isa(isa));
      stun_ext_isa now = 0;
      OK(stun_ext_get_isa(&now));
      CHECK(now == isa);
      ++usable;
    } else {
      FAILS(stun_ext_set_isa(isa), STUN_EXT_UNAVAILABLE, "[set_isa] isa must be one of those");
    }
    if (isa == before) CHECK(supported == 1);
    if (isa == STUN_EXT_SCALAR) CHECK(supported == 1);
  }
  CHECK(usable < STUN_EXT_NEON);  // no processor has the instructions of x86 and of AArch64
  OK(stun_ext_set_isa(before));

  int32_t supported = -1;
  REFUSES(stun_ext_isa_supported(0, &supported), "[isa_supported] isa must be one of");
  CHECK(supported == -1);
  REFUSES(stun_ext_isa_supported(STUN_EXT_SCALAR, NULL), "[isa_supported] supported must not be null");
  REFUSES(stun_ext_get_isa(NULL), "[get_isa] isa must not be null");
  REFUSES(stun_ext_set_isa(STUN_EXT_NEON + 1), "[set_isa] isa must be one of the STUN_EXT_ instruction sets, got 5");
}

static void test_threads(void) {
  const int32_t before = stun_ext_num_threads();
  CHECK(before >= 1);
  OK(stun_ext_set_num_threads(3));
  CHECK(stun_ext_num_threads() == 3);
  REFUSES(stun_ext_set_num_threads(0), "[set_num_threads] count must be at least 1, got 0");
  CHECK(stun_ext_num_threads() == 3);
  OK(stun_ext_set_num_threads(before));
}

void test_library(void) {
  CHECK(strcmp(stun_ext_last_error_message(), "") == 0);  // the first group to run in its process
  test_names();
  test_processor();
  test_threads();
}

void test_unavailable(void) {
  const char* text = NULL;
  int32_t number = -1;
  const char* const part = "[isa] STUN_EXT_ISA must be one of";
  FAILS(stun_ext_cpu_model(&text), STUN_EXT_UNAVAILABLE, part);
  FAILS(stun_ext_cpu_features(&text), STUN_EXT_UNAVAILABLE, part);
  FAILS(stun_ext_isa_supported(STUN_EXT_SCALAR, &number), STUN_EXT_UNAVAILABLE, part);
  FAILS(stun_ext_get_isa(&number), STUN_EXT_UNAVAILABLE, part);
  CHECK(text == NULL && number == -1);
  const stun_ext_const_matrix rows = points();
  double out[6];
  FAILS(stun_ext_condensed_distances(&rows, out, 6, NULL), STUN_EXT_UNAVAILABLE, part);
  OK(stun_ext_set_isa(STUN_EXT_SCALAR));  // which ends it
  OK(stun_ext_condensed_distances(&rows, out, 6, NULL));
}
