// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/experts.h"

#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "callbacks.hpp"
#include "status.hpp"
#include "stun_ext/experts.hpp"
#include "stun_ext/matmul.hpp"
#include "stun_ext/packed_file.hpp"
#include "stun_ext/sparse.hpp"

using namespace stun_ext;

struct stun_ext_packed {
  PackedMatrix matrix;
};

struct stun_ext_packed_file {
  PackedFile file;
};

struct stun_ext_experts {
  Experts experts;
};

namespace {

/// An output handle: null until the call succeeds.
template <class T>
T*& handle(const char* operation, const char* name, T** pointer) {
  T*& out = c::at(operation, name, pointer);
  out = nullptr;
  return out;
}

Activation activation(const char* operation, stun_ext_activation number) {
  if (number < STUN_EXT_SILU || number > STUN_EXT_RELU_SQUARED) {
    c::refuse(operation, "options.activation must be one of the STUN_EXT_ activations, got ", number);
  }
  return static_cast<Activation>(number - STUN_EXT_SILU);
}

struct Options {
  ExpertFunction function;
  ConstMatrixView up_bias, down_bias;
};

ConstMatrixView bias(const char* operation, const char* name, const stun_ext_const_matrix& given) {
  return given.data == nullptr ? ConstMatrixView{} : c::view(operation, name, &given);
}

Options options_of(const char* operation, const stun_ext_expert_options* given) {
  const stun_ext_expert_options known = c::versioned(operation, "options", given);
  Options options;
  options.function.activation = activation(operation, known.activation);
  options.function.is_gated = known.is_gated != 0;
  options.function.is_interleaved = known.is_interleaved != 0;
  options.function.alpha = known.alpha;
  options.function.limit = known.limit;
  options.function.up_offset = known.up_offset;
  options.up_bias = bias(operation, "options.up_bias", known.up_bias);
  options.down_bias = bias(operation, "options.down_bias", known.down_bias);
  return options;
}

std::vector<ExpertWeight> weights(const char* operation, const char* name, const stun_ext_expert_weight* given,
                                  std::int64_t size) {
  std::vector<ExpertWeight> out;
  for (const stun_ext_expert_weight& weight : c::span(operation, name, given, size)) {
    if (weight.packed != nullptr) {
      out.emplace_back(weight.packed->matrix);
    } else {
      out.emplace_back(c::view(operation, name, &weight.dense));
    }
  }
  return out;
}

const char* text(const char* operation, const char* name, const char* given) { return &c::at(operation, name, given); }

}  // namespace

stun_ext_status stun_ext_pack(const stun_ext_const_matrix* weight, stun_ext_packed** packed,
                              const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "pack";
    c::CallerExecutor runs_on(kOperation, executor);
    stun_ext_packed*& out = handle(kOperation, "packed", packed);
    out = new stun_ext_packed{pack(c::view(kOperation, "weight", weight), runs_on)};
  });
}

stun_ext_status stun_ext_packed_from_buffers(int64_t rows, int64_t cols, stun_ext_dtype dtype, const void* values,
                                             int64_t value_bytes, const uint32_t* masks, int64_t masks_size,
                                             stun_ext_packed** packed, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "from_buffers";
    c::CallerExecutor runs_on(kOperation, executor);
    stun_ext_packed*& out = handle(kOperation, "packed", packed);
    const std::optional<DType> type = c::find_dtype(dtype);
    if (!type) c::refuse(kOperation, "dtype must be one of the STUN_EXT_ element types, got ", dtype);
    const auto bytes = c::span(kOperation, "values", static_cast<const std::byte*>(values), value_bytes);
    out = new stun_ext_packed{
        PackedMatrix::from_buffers(rows, cols, *type, bytes, c::span(kOperation, "masks", masks, masks_size), runs_on)};
  });
}

void stun_ext_packed_free(stun_ext_packed* packed) noexcept { delete packed; }

stun_ext_status stun_ext_packed_get_size(const stun_ext_packed* packed, stun_ext_packed_size* size) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "packed_get_size";
    const PackedMatrix& matrix = c::at(kOperation, "packed", packed).matrix;
    stun_ext_packed_size& out = c::at(kOperation, "size", size);
    const stun_ext_dtype dtype = matrix.dtype() == DType::f32   ? STUN_EXT_FLOAT32
                                 : matrix.dtype() == DType::f16 ? STUN_EXT_FLOAT16
                                                                : STUN_EXT_BFLOAT16;
    out = {matrix.rows(),
           matrix.cols(),
           matrix.nnz(),
           static_cast<int64_t>(matrix.values().size()),
           static_cast<int64_t>(matrix.masks().size()),
           dtype,
           0};
  });
}

stun_ext_status stun_ext_packed_buffers(const stun_ext_packed* packed, const void** values,
                                        const uint32_t** masks) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "packed_buffers";
    const PackedMatrix& matrix = c::at(kOperation, "packed", packed).matrix;
    const void*& of_values = c::at(kOperation, "values", values);
    c::at(kOperation, "masks", masks) = matrix.masks().data();
    of_values = matrix.values().data();
  });
}

stun_ext_status stun_ext_unpack(const stun_ext_packed* packed, const stun_ext_matrix* weight,
                                const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "unpack";
    c::CallerExecutor runs_on(kOperation, executor);
    unpack(c::at(kOperation, "packed", packed).matrix, c::view(kOperation, "weight", weight), runs_on);
  });
}

stun_ext_status stun_ext_packed_matmul(const stun_ext_const_matrix* x, const stun_ext_packed* packed,
                                       const stun_ext_matrix* y, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "packed_matmul";
    c::CallerExecutor runs_on(kOperation, executor);
    packed_matmul(c::view(kOperation, "x", x), c::at(kOperation, "packed", packed).matrix, c::view(kOperation, "y", y),
                  runs_on);
  });
}

stun_ext_status stun_ext_dense_matmul(const stun_ext_const_matrix* x, const stun_ext_const_matrix* weight,
                                      const stun_ext_matrix* y, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "dense_matmul";
    c::CallerExecutor runs_on(kOperation, executor);
    dense_matmul(c::view(kOperation, "x", x), c::view(kOperation, "weight", weight), c::view(kOperation, "y", y),
                 runs_on);
  });
}

stun_ext_status stun_ext_experts_create(const stun_ext_expert_weight* up, int64_t up_size,
                                        const stun_ext_expert_weight* down, int64_t down_size,
                                        const stun_ext_expert_options* options, stun_ext_experts** experts) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "experts_create";
    stun_ext_experts*& out = handle(kOperation, "experts", experts);
    const Options known = options_of(kOperation, options);
    out = new stun_ext_experts{Experts(weights(kOperation, "up", up, up_size),
                                       weights(kOperation, "down", down, down_size), known.function, known.up_bias,
                                       known.down_bias)};
  });
}

void stun_ext_experts_free(stun_ext_experts* experts) noexcept { delete experts; }

stun_ext_status stun_ext_experts_shape(const stun_ext_experts* experts, int64_t* num_experts, int64_t* hidden_size,
                                       int64_t* intermediate_size) noexcept {
  return c::call([&] {
    const Experts& known = c::at("experts_shape", "experts", experts).experts;
    if (num_experts != nullptr) *num_experts = known.num_experts();
    if (hidden_size != nullptr) *hidden_size = known.hidden_size();
    if (intermediate_size != nullptr) *intermediate_size = known.intermediate_size();
  });
}

stun_ext_status stun_ext_expert_forward(const stun_ext_const_matrix* x, const stun_ext_const_matrix* top_k_index,
                                        const stun_ext_const_matrix* top_k_weights, const stun_ext_experts* experts,
                                        const stun_ext_matrix* y, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "expert_forward";
    c::CallerExecutor runs_on(kOperation, executor);
    expert_forward(c::view(kOperation, "x", x), c::view(kOperation, "top_k_index", top_k_index),
                   c::view(kOperation, "top_k_weights", top_k_weights), c::at(kOperation, "experts", experts).experts,
                   c::view(kOperation, "y", y), runs_on);
  });
}

stun_ext_status stun_ext_packed_file_open(const char* path, stun_ext_packed_file** file) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "packed_file_open";
    stun_ext_packed_file*& out = handle(kOperation, "file", file);
    out = new stun_ext_packed_file{PackedFile(std::string(text(kOperation, "path", path)))};
  });
}

void stun_ext_packed_file_free(stun_ext_packed_file* file) noexcept { delete file; }

stun_ext_status stun_ext_packed_file_experts(const stun_ext_packed_file* file, const char* module,
                                             const stun_ext_expert_options* options, stun_ext_experts** experts,
                                             const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "packed_file_experts";
    c::CallerExecutor runs_on(kOperation, executor);
    stun_ext_experts*& out = handle(kOperation, "experts", experts);
    const PackedFile& known = c::at(kOperation, "file", file).file;
    const Options given = options_of(kOperation, options);
    out = new stun_ext_experts{
        known.experts(text(kOperation, "module", module), given.function, given.up_bias, given.down_bias, runs_on)};
  });
}
