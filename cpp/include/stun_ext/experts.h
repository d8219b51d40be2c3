// SPDX-License-Identifier: Apache-2.0
#ifndef STUN_EXT_EXPERTS_H_
#define STUN_EXT_EXPERTS_H_

/// Packed weights, and the experts of a layer computed from them: part of the C ABI, under the rules of stun_ext.h but
/// for ownership. What a function returns in a `_create`d, packed or opened handle is the caller's to free; freeing
/// null does nothing. Handles do not change after they are made, and may be used from many threads at once.
///
///     stun_ext_packed_file* file = NULL;
///     stun_ext_experts* experts = NULL;
///     const stun_ext_expert_options options = STUN_EXT_EXPERT_OPTIONS_INIT;
///     stun_ext_status status = stun_ext_packed_file_open("model.stun.safetensors", &file);
///     if (status == STUN_EXT_OK) {
///       status = stun_ext_packed_file_experts(file, "model.layers.0.mlp.experts", &options, &experts, NULL);
///     }
///     stun_ext_packed_file_free(file);  // the experts keep the file mapped

#include "stun_ext/stun_ext.h"

#ifdef __cplusplus
extern "C" {
#endif

// --- Packed matrices (sparse.hpp, matmul.hpp)

/// A weight as a bitmap and the values that are left.
typedef struct stun_ext_packed stun_ext_packed;

/// How large a packed matrix is.
typedef struct stun_ext_packed_size {
  int64_t rows;
  int64_t cols;
  int64_t nnz;          ///< weights that are present
  int64_t value_bytes;  ///< of the values buffer
  int64_t masks;        ///< number of 32-bit masks
  stun_ext_dtype dtype;
  int32_t reserved;
} stun_ext_packed_size;

/// Packs into memory of the handle's own. `weight`: [R, C] float32, float16 or bfloat16, any values.
STUN_EXT_API stun_ext_status stun_ext_pack(const stun_ext_const_matrix* weight, stun_ext_packed** packed,
                                           const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// A matrix in buffers of the caller's, laid out as sparse.hpp says, which must outlive the handle and all that is made
/// of it. Every mask is read and checked: buffers may be hostile.
STUN_EXT_API stun_ext_status stun_ext_packed_from_buffers(int64_t rows, int64_t cols, stun_ext_dtype dtype,
                                                          const void* values, int64_t value_bytes,
                                                          const uint32_t* masks, int64_t masks_size,
                                                          stun_ext_packed** packed,
                                                          const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

STUN_EXT_API void stun_ext_packed_free(stun_ext_packed* packed) STUN_EXT_NOEXCEPT;

STUN_EXT_API stun_ext_status stun_ext_packed_get_size(const stun_ext_packed* packed,
                                                      stun_ext_packed_size* size) STUN_EXT_NOEXCEPT;

/// The buffers, for a file of the caller's: `value_bytes` bytes and `masks` masks. They live as long as the handle.
STUN_EXT_API stun_ext_status stun_ext_packed_buffers(const stun_ext_packed* packed, const void** values,
                                                     const uint32_t** masks) STUN_EXT_NOEXCEPT;

/// The dense matrix, bit for bit. `weight`: [R, C] of the packed dtype.
STUN_EXT_API stun_ext_status stun_ext_unpack(const stun_ext_packed* packed, const stun_ext_matrix* weight,
                                             const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// y = x Wᵀ, summed in float32. `x`: [M, C], `y`: [M, R], each float32, float16 or bfloat16.
STUN_EXT_API stun_ext_status stun_ext_packed_matmul(const stun_ext_const_matrix* x, const stun_ext_packed* packed,
                                                    const stun_ext_matrix* y,
                                                    const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// The same with a dense W [R, C], whose rows have contiguous elements.
STUN_EXT_API stun_ext_status stun_ext_dense_matmul(const stun_ext_const_matrix* x, const stun_ext_const_matrix* weight,
                                                   const stun_ext_matrix* y,
                                                   const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

// --- Experts (experts.hpp, packed_file.hpp)

/// φ(z): z·sigmoid(alpha·z); z·Φ(z); its approximation by tanh; max(z, 0); max(z, 0)².
typedef int32_t stun_ext_activation;
enum { STUN_EXT_SILU = 1, STUN_EXT_GELU = 2, STUN_EXT_GELU_TANH = 3, STUN_EXT_RELU = 4, STUN_EXT_RELU_SQUARED = 5 };

/// What lies between the projections of an expert: gated a = φ(min(gate, limit))·(clamp(up, ±limit) + up_offset), else
/// a = φ(up).
typedef struct stun_ext_expert_options {
  int64_t struct_size;  ///< sizeof(stun_ext_expert_options)
  stun_ext_activation activation;
  int32_t is_gated;
  int32_t is_interleaved;  ///< rows gate 0, up 0, gate 1, …; 0: all gate rows, then all up rows
  float alpha;             ///< of SILU; positive
  float limit;             ///< positive
  float up_offset;
  stun_ext_const_matrix up_bias;    ///< [E, rows of up]; data null: none
  stun_ext_const_matrix down_bias;  ///< [E, H]; data null: none
} stun_ext_expert_options;
#define STUN_EXT_EXPERT_OPTIONS_INIT                                                            \
  {sizeof(stun_ext_expert_options), STUN_EXT_SILU,           1, 0, 1.0f, 3.402823466e38f, 0.0f, \
   {NULL, 0, 0, 0, 0, 0, 0},        {NULL, 0, 0, 0, 0, 0, 0}}

/// One matrix of an expert: packed, or dense (rows of contiguous elements) where that is null.
typedef struct stun_ext_expert_weight {
  const stun_ext_packed* packed;
  stun_ext_const_matrix dense;
} stun_ext_expert_weight;

/// The routed experts of a layer, checked.
typedef struct stun_ext_experts stun_ext_experts;

/// `up`: for each of E experts [I, H], or [2 I, H] if gated; `down`: [H, I]. Packed handles may be freed afterwards;
/// dense matrices, biases and buffers of the caller's must outlive the experts.
STUN_EXT_API stun_ext_status stun_ext_experts_create(const stun_ext_expert_weight* up, int64_t up_size,
                                                     const stun_ext_expert_weight* down, int64_t down_size,
                                                     const stun_ext_expert_options* options,
                                                     stun_ext_experts** experts) STUN_EXT_NOEXCEPT;

STUN_EXT_API void stun_ext_experts_free(stun_ext_experts* experts) STUN_EXT_NOEXCEPT;

/// E, H and I; each pointer may be null.
STUN_EXT_API stun_ext_status stun_ext_experts_shape(const stun_ext_experts* experts, int64_t* num_experts,
                                                    int64_t* hidden_size, int64_t* intermediate_size) STUN_EXT_NOEXCEPT;

/// y[t] = Σ_j top_k_weights[t, j] · expert top_k_index[t, j] of x[t]. `x`, `y`: [T, H]; `top_k_index`: [T, k] int64,
/// ids outside of [0, E) are skipped; `top_k_weights`: [T, k]. But for the ids all are float32, float16 or bfloat16.
STUN_EXT_API stun_ext_status stun_ext_expert_forward(const stun_ext_const_matrix* x,
                                                     const stun_ext_const_matrix* top_k_index,
                                                     const stun_ext_const_matrix* top_k_weights,
                                                     const stun_ext_experts* experts, const stun_ext_matrix* y,
                                                     const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// A file of `stun-ext pack`, mapped.
typedef struct stun_ext_packed_file stun_ext_packed_file;

/// Checks the header, and sizes and types of all matrices.
STUN_EXT_API stun_ext_status stun_ext_packed_file_open(const char* path, stun_ext_packed_file** file) STUN_EXT_NOEXCEPT;

STUN_EXT_API void stun_ext_packed_file_free(stun_ext_packed_file* file) STUN_EXT_NOEXCEPT;

/// The experts of a module, "model.layers.3.mlp.experts", where they are mapped, their masks checked. They keep the
/// file mapped. Of the options, is_gated is set by the file.
STUN_EXT_API stun_ext_status stun_ext_packed_file_experts(const stun_ext_packed_file* file, const char* module,
                                                          const stun_ext_expert_options* options,
                                                          stun_ext_experts** experts,
                                                          const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // STUN_EXT_EXPERTS_H_
