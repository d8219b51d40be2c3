// SPDX-License-Identifier: Apache-2.0
// Built as C11, C17 and C++17: the header alone, with everything that it defines itself.
#include "stun_ext/experts.h"

int64_t use_header(void);

int64_t use_header(void) {
  const stun_ext_executor executor = STUN_EXT_EXECUTOR_INIT;
  const stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
  const stun_ext_expert_options experts = STUN_EXT_EXPERT_OPTIONS_INIT;
  const stun_ext_const_matrix from = stun_ext_const_row_major(NULL, 0, 4, STUN_EXT_FLOAT32);
  const stun_ext_matrix to = stun_ext_row_major(NULL, 0, 4, STUN_EXT_FLOAT64);
  return executor.struct_size + options.struct_size + experts.struct_size + from.row_stride + to.row_stride;
}
