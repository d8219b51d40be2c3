// SPDX-License-Identifier: Apache-2.0
// The C ABI: packed matrices, the experts of a layer, and files of them. Sums are compared with float64 by the tests;
// what is read and written, and what is refused, is what matters here.
#include <unistd.h>

#include <cstdio>

#include "c_arguments.hpp"
#include "stun_ext/experts.h"

namespace stun_ext::fuzz {
namespace {

using Packed = std::unique_ptr<stun_ext_packed, decltype(&stun_ext_packed_free)>;
using Made = std::unique_ptr<stun_ext_experts, decltype(&stun_ext_experts_free)>;

Packed packed_of(const AnyMatrix& weight) {
  const MatrixView view = weight.view();
  const stun_ext_const_matrix of = {
      view.data, view.rows, view.cols, view.row_stride, view.col_stride, number_of(view.dtype), 0};
  stun_ext_packed* packed = nullptr;
  require(stun_ext_pack(&of, &packed, nullptr) == STUN_EXT_OK, "a matrix can be packed");
  return {packed, stun_ext_packed_free};
}

DType pick_float(Input& input) { return static_cast<DType>(input.ConsumeIntegralInRange(0, 2)); }

void run_pack(Input& input) {
  Call call(input, "pack");
  const AnyMatrix weight(input, pick_float(input), pick_size(input, 9, 70), pick_size(input, 70, 300));
  stun_ext_packed* made = nullptr;
  const stun_ext_const_matrix* of = call.matrix(weight);
  if (of != nullptr && (of->rows > 1000 || of->cols > 1000)) return;  // rows that share memory, packed, take some each
  const bool is_done = call.succeeded(stun_ext_pack(of, call.pointer(&made), call.executor()));
  const Packed packed(made, stun_ext_packed_free);
  require(is_done == (made != nullptr), "a handle or an error");
  if (!is_done) return;
  stun_ext_packed_size size;
  const void* values = nullptr;
  const std::uint32_t* masks = nullptr;
  require(stun_ext_packed_get_size(made, &size) == STUN_EXT_OK, "has a size");
  require(stun_ext_packed_buffers(made, &values, &masks) == STUN_EXT_OK, "has buffers");

  Call again(input, "from_buffers");
  stun_ext_packed* second = nullptr;
  const std::int64_t value_bytes = again.size(size.value_bytes), n_masks = again.size(size.masks);
  const stun_ext_dtype dtype = again.number(size.dtype, STUN_EXT_BFLOAT16);
  if (dtype != size.dtype) return;  // sizes of another type may or may not fit
  const bool is_made = again.succeeded(stun_ext_packed_from_buffers(
      size.rows, size.cols, dtype, again.pointer(values), value_bytes, masks, n_masks, &second, again.executor()));
  stun_ext_packed_free(second);
  if (again.is_honest() && !again.may_end_early())
    require(is_made, std::string("its own buffers are good: ") + stun_ext_last_error_message());
}

void run_products(Input& input) {
  const bool is_packed = input.ConsumeBool();
  const std::int64_t rows = pick_size(input, 9, 70), cols = pick_size(input, 70, 200), tokens = pick_size(input, 5, 40);
  const AnyMatrix weight(input, pick_float(input), rows, cols, false), x(input, pick_float(input), tokens, cols),
      y(input, pick_float(input), tokens, rows, false);
  const Packed packed = packed_of(weight);
  if (is_packed) {
    Call call(input, "packed_matmul");
    call.succeeded(stun_ext_packed_matmul(call.matrix(x), call.pointer(packed.get()), call.out(y), call.executor()));
  } else {
    Call call(input, "dense_matmul");
    call.succeeded(stun_ext_dense_matmul(call.matrix(x), call.matrix(weight), call.out(y), call.executor()));
  }
  const AnyMatrix out(input, weight.view().dtype, rows, cols, false);
  Call call(input, "unpack");
  call.succeeded(stun_ext_unpack(call.pointer(packed.get()), call.out(out), call.executor()));
}

stun_ext_expert_options pick_options(Input& input) {
  stun_ext_expert_options options = STUN_EXT_EXPERT_OPTIONS_INIT;
  options.activation = input.ConsumeIntegralInRange(0, 6);
  options.is_gated = input.ConsumeBool();
  options.is_interleaved = input.ConsumeBool();
  if (input.ConsumeBool()) options.alpha = static_cast<float>(pick_double(input));
  if (input.ConsumeBool()) options.limit = static_cast<float>(pick_double(input));
  if (input.ConsumeBool()) options.up_offset = static_cast<float>(pick_double(input));
  return options;
}

void run_experts(Input& input) {
  const std::int64_t hidden = pick_size(input, 9, 70), intermediate = pick_size(input, 9, 40);
  const std::int64_t n_experts = input.ConsumeIntegralInRange(0, 4);
  stun_ext_expert_options options = pick_options(input);
  const DType dtype = pick_float(input);
  std::deque<AnyMatrix> matrices;
  std::vector<Packed> packed;
  std::vector<stun_ext_expert_weight> up, down;
  const auto add = [&](std::vector<stun_ext_expert_weight>& to, std::int64_t rows, std::int64_t cols) {
    if (input.ConsumeIntegralInRange(0, 30) == 0) ++rows;
    matrices.emplace_back(input, dtype, rows, cols, false);
    const MatrixView view = matrices.back().view();
    to.push_back(
        {nullptr, {view.data, view.rows, view.cols, view.row_stride, view.col_stride, number_of(view.dtype), 0}});
    if (input.ConsumeBool()) return;
    packed.push_back(packed_of(matrices.back()));
    to.back().packed = packed.back().get();
  };
  for (std::int64_t e = 0; e < n_experts; ++e) {
    add(up, intermediate * (options.is_gated ? 2 : 1), hidden);
    add(down, hidden, intermediate);
  }
  stun_ext_experts* made = nullptr;
  const stun_ext_status status = stun_ext_experts_create(up.data(), n_experts, down.data(), n_experts, &options, &made);
  const Made experts(made, stun_ext_experts_free);
  require((status == STUN_EXT_OK) == (made != nullptr), "a handle or an error");
  packed.clear();  // the experts share them
  if (made == nullptr) return;
  std::int64_t shape[3];
  require(stun_ext_experts_shape(made, &shape[0], &shape[1], &shape[2]) == STUN_EXT_OK, "has a shape");
  require(shape[0] == n_experts && shape[1] == hidden && shape[2] == intermediate, "its shape");

  Call call(input, "expert_forward");
  const std::int64_t tokens = pick_size(input, 5, 40), per_token = input.ConsumeIntegralInRange(0, 3);
  const AnyMatrix x(input, pick_float(input), tokens, hidden), y(input, pick_float(input), tokens, hidden, false),
      weights(input, pick_float(input), tokens, per_token);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens * per_token));
  for (std::int64_t& id : ids) {
    id = input.ConsumeIntegralInRange(0, 9) == 0 ? input.ConsumeIntegral<std::int64_t>()
                                                 : input.ConsumeIntegralInRange<std::int64_t>(-1, n_experts);
  }
  std::int64_t none = 0;
  const stun_ext_const_matrix index = {
      ids.empty() ? &none : ids.data(), tokens, per_token, per_token, 1, STUN_EXT_INT64, 0};
  call.succeeded(stun_ext_expert_forward(call.matrix(x), call.pointer(&index), call.matrix(weights), made, call.out(y),
                                         call.executor()));
}

/// Files by the C++ fuzzer; here that there is an error and no handle.
void run_file(Input& input) {
  const std::string path = "/tmp/stun_ext_fuzz_" + std::to_string(getpid());
  const std::string content = input.ConsumeRandomLengthString(2000);
  if (std::FILE* file = std::fopen(path.c_str(), "wb")) {
    std::fwrite(content.data(), 1, content.size(), file);
    std::fclose(file);
  }
  stun_ext_packed_file* file = nullptr;
  const stun_ext_status status = stun_ext_packed_file_open(path.c_str(), &file);
  require((status == STUN_EXT_OK) == (file != nullptr), "a handle or an error");
  const stun_ext_expert_options options = pick_options(input);
  stun_ext_experts* experts = nullptr;
  const stun_ext_status made = stun_ext_packed_file_experts(file, "m", &options, &experts, nullptr);
  require((made == STUN_EXT_OK) == (experts != nullptr), "a handle or an error");
  stun_ext_packed_file_free(file);
  stun_ext_experts_free(experts);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stun_ext::fuzz;
  Input input(data, size);
  void (*const runs[])(Input&) = {run_pack, run_products, run_experts, run_experts, run_file};
  runs[input.ConsumeIntegralInRange(0, 4)](input);
  return 0;
}
