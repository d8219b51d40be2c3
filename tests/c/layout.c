// SPDX-License-Identifier: Apache-2.0
// The types, layouts and numbers that programs are compiled against. A line here changes only with the soname.
#include "stun_ext/experts.h"
#include "stun_ext/stun_ext.h"
#include "symbols.h"  // declared again: other types than the header's are an error

#define IS(what, value) _Static_assert((what) == (value), #what " is part of the ABI")
#define FIELD(type, field, offset, size) \
  IS(offsetof(type, field), offset);     \
  IS(sizeof(((type*)0)->field), size)

IS(STUN_EXT_OK, 0);
IS(STUN_EXT_INVALID_ARGUMENT, 1);
IS(STUN_EXT_UNAVAILABLE, 2);
IS(STUN_EXT_CANCELLED, 3);
IS(STUN_EXT_OUT_OF_MEMORY, 4);
IS(STUN_EXT_CALLBACK_FAILED, 5);
IS(STUN_EXT_INTERNAL, 6);

IS(STUN_EXT_FLOAT32, 1);
IS(STUN_EXT_FLOAT16, 2);
IS(STUN_EXT_BFLOAT16, 3);
IS(STUN_EXT_FLOAT64, 4);
IS(STUN_EXT_INT64, 5);

IS(STUN_EXT_SCALAR, 1);
IS(STUN_EXT_AVX2, 2);
IS(STUN_EXT_AVX512, 3);
IS(STUN_EXT_NEON, 4);

IS(STUN_EXT_SINGLE, 1);
IS(STUN_EXT_COMPLETE, 2);
IS(STUN_EXT_AVERAGE, 3);
IS(STUN_EXT_WARD, 4);
IS(STUN_EXT_CENTROID, 5);

IS(STUN_EXT_SILU, 1);
IS(STUN_EXT_GELU, 2);
IS(STUN_EXT_GELU_TANH, 3);
IS(STUN_EXT_RELU, 4);
IS(STUN_EXT_RELU_SQUARED, 5);

IS(sizeof(stun_ext_activation), 4);
IS(sizeof(stun_ext_status), 4);
IS(sizeof(stun_ext_dtype), 4);
IS(sizeof(stun_ext_isa), 4);
IS(sizeof(stun_ext_linkage_method), 4);

IS(sizeof(stun_ext_merge), 32);
FIELD(stun_ext_merge, first, 0, 8);
FIELD(stun_ext_merge, second, 8, 8);
FIELD(stun_ext_merge, height, 16, 8);
FIELD(stun_ext_merge, size, 24, 8);

IS(sizeof(stun_ext_packed_size), 48);
FIELD(stun_ext_packed_size, rows, 0, 8);
FIELD(stun_ext_packed_size, cols, 8, 8);
FIELD(stun_ext_packed_size, nnz, 16, 8);
FIELD(stun_ext_packed_size, value_bytes, 24, 8);
FIELD(stun_ext_packed_size, masks, 32, 8);
FIELD(stun_ext_packed_size, dtype, 40, 4);
FIELD(stun_ext_packed_size, reserved, 44, 4);

#if UINTPTR_MAX == UINT64_MAX
IS(sizeof(stun_ext_expert_options), 128);
FIELD(stun_ext_expert_options, struct_size, 0, 8);
FIELD(stun_ext_expert_options, activation, 8, 4);
FIELD(stun_ext_expert_options, is_gated, 12, 4);
FIELD(stun_ext_expert_options, is_interleaved, 16, 4);
FIELD(stun_ext_expert_options, alpha, 20, 4);
FIELD(stun_ext_expert_options, limit, 24, 4);
FIELD(stun_ext_expert_options, up_offset, 28, 4);
FIELD(stun_ext_expert_options, up_bias, 32, 48);
FIELD(stun_ext_expert_options, down_bias, 80, 48);

IS(sizeof(stun_ext_expert_weight), 56);
FIELD(stun_ext_expert_weight, packed, 0, 8);
FIELD(stun_ext_expert_weight, dense, 8, 48);

IS(sizeof(stun_ext_const_matrix), 48);
FIELD(stun_ext_const_matrix, data, 0, 8);
FIELD(stun_ext_const_matrix, rows, 8, 8);
FIELD(stun_ext_const_matrix, cols, 16, 8);
FIELD(stun_ext_const_matrix, row_stride, 24, 8);
FIELD(stun_ext_const_matrix, col_stride, 32, 8);
FIELD(stun_ext_const_matrix, dtype, 40, 4);
FIELD(stun_ext_const_matrix, reserved, 44, 4);

IS(sizeof(stun_ext_matrix), 48);
FIELD(stun_ext_matrix, data, 0, 8);
FIELD(stun_ext_matrix, rows, 8, 8);
FIELD(stun_ext_matrix, cols, 16, 8);
FIELD(stun_ext_matrix, row_stride, 24, 8);
FIELD(stun_ext_matrix, col_stride, 32, 8);
FIELD(stun_ext_matrix, dtype, 40, 4);
FIELD(stun_ext_matrix, reserved, 44, 4);

IS(sizeof(stun_ext_mask), 32);
FIELD(stun_ext_mask, data, 0, 8);
FIELD(stun_ext_mask, rows, 8, 8);
FIELD(stun_ext_mask, cols, 16, 8);
FIELD(stun_ext_mask, row_stride, 24, 8);

IS(sizeof(stun_ext_executor), 32);
FIELD(stun_ext_executor, struct_size, 0, 8);
FIELD(stun_ext_executor, concurrency, 8, 8);
FIELD(stun_ext_executor, context, 16, 8);
FIELD(stun_ext_executor, parallel_for, 24, 8);

IS(sizeof(stun_ext_linkage_options), 48);
FIELD(stun_ext_linkage_options, struct_size, 0, 8);
FIELD(stun_ext_linkage_options, memory_limit, 8, 8);
FIELD(stun_ext_linkage_options, n_clusters, 16, 8);
FIELD(stun_ext_linkage_options, height, 24, 8);
FIELD(stun_ext_linkage_options, progress, 32, 8);
FIELD(stun_ext_linkage_options, progress_context, 40, 8);
#endif
