// SPDX-License-Identifier: Apache-2.0
#include "fuzz.hpp"
#include "stun_ext/matmul.hpp"
#include "stun_ext/sparse.hpp"

namespace stun_ext::fuzz {
namespace {

/// Memory of exactly this size, so that a byte read beyond it is found.
template <class T>
std::unique_ptr<T[]> exactly(const std::vector<T>& values) {
  std::unique_ptr<T[]> memory(new T[values.size()]);
  std::copy(values.begin(), values.end(), memory.get());
  return memory;
}

/// Sums are compared with float64 by the tests; what the kernels read and write is what matters here.
void multiply(Input& input, const PackedMatrix& matrix, Executor& executor) {
  const std::int64_t tokens = pick_size(input, 5, 40);
  const DType dtype = input.ConsumeBool() ? DType::bf16 : DType::f32;
  const AnyMatrix x(input, dtype, tokens, matrix.cols());
  std::vector<float> y(static_cast<std::size_t>(tokens * matrix.rows()) + 1);
  const MatrixView out{y.data(), tokens, matrix.rows(), matrix.rows(), 1, DType::f32};
  for (const Isa isa : cpu_info().supported) {
    const test::ForcedIsa forced(isa);
    packed_matmul(x, matrix, out, executor);
  }
}

/// Buffers from nowhere, or good ones with some bytes changed: what is accepted has to be a matrix.
void run_hostile(Input& input) {
  const std::int64_t rows = pick_size(input, 9, 70), cols = pick_size(input, 70, 300);
  const auto dtype = static_cast<DType>(input.ConsumeIntegralInRange(0, 2));
  const AnyMatrix weight(input, dtype, rows, cols);
  Splitting executor(input);
  const PackedMatrix good = pack(weight, executor);
  std::vector<std::byte> values(good.values().begin(), good.values().end());
  std::vector<std::uint32_t> masks(good.masks().begin(), good.masks().end());
  for (int changes = input.ConsumeIntegralInRange(0, 3); changes > 0; --changes) {
    const auto place = input.ConsumeIntegral<std::uint32_t>();
    if (input.ConsumeBool() && !masks.empty()) masks[place % masks.size()] = input.ConsumeIntegral<std::uint32_t>();
    if (input.ConsumeBool()) values[place % values.size()] = std::byte{input.ConsumeIntegral<std::uint8_t>()};
    if (input.ConsumeIntegralInRange(0, 3) == 0) values.resize(place % 1000);
    if (input.ConsumeIntegralInRange(0, 3) == 0) masks.resize(place % 1000);
    if (values.empty()) values.resize(1);
  }
  std::int64_t claimed_rows = rows, claimed_cols = cols;
  if (input.ConsumeIntegralInRange(0, 3) == 0) claimed_rows = input.ConsumeIntegral<std::int64_t>();
  if (input.ConsumeIntegralInRange(0, 3) == 0) claimed_cols = input.ConsumeIntegral<std::int64_t>();
  const DType claimed_dtype = input.ConsumeIntegralInRange(0, 3) == 0 ? pick_dtype(input) : dtype;

  const std::unique_ptr<std::byte[]> value_memory = exactly(values);
  const std::unique_ptr<std::uint32_t[]> mask_memory = exactly(masks);
  PackedMatrix matrix;
  const bool is_accepted = accepts("from_buffers", [&] {
    matrix = PackedMatrix::from_buffers(claimed_rows, claimed_cols, claimed_dtype, {value_memory.get(), values.size()},
                                        {mask_memory.get(), masks.size()}, executor);
  });
  if (!is_accepted || matrix.rows() > 1000 || matrix.cols() > 1000) return;
  AnyMatrix out(input, claimed_dtype, claimed_rows, claimed_cols, false);
  unpack(matrix, out.view(), executor);
  multiply(input, matrix, executor);
  std::int64_t present = 0;
  for (const std::uint32_t mask : matrix.masks()) present += __builtin_popcount(mask);
  require(present == matrix.nnz(), "as many values as bits");
}

void run_round_trip(Input& input) {
  const std::int64_t rows = pick_size(input, 9, 70), cols = pick_size(input, 70, 300);
  const AnyMatrix weight(input, pick_dtype(input), rows, cols);
  const MatrixView view = maybe_spoilt(input, weight.view());
  if (view.rows > 1000) return;
  Splitting executor(input);
  PackedMatrix matrix;
  PackedSize size;
  const bool has_size = accepts("packed_size", [&] { size = packed_size(view, executor); });
  const bool is_packed = accepts("pack", [&] { matrix = pack(view, executor); });
  require(has_size == is_packed, "what has a size can be packed");
  if (!is_packed) return;
  require(size.nnz == matrix.nnz(), "the number of values");
  require(size.value_bytes == static_cast<std::int64_t>(matrix.values().size()), "the size of the values");
  require(size.masks == static_cast<std::int64_t>(matrix.masks().size()), "the number of masks");
  const PackedMatrix again =
      PackedMatrix::from_buffers(view.rows, view.cols, view.dtype, matrix.values(), matrix.masks(), executor);
  AnyMatrix out(input, view.dtype, view.rows, view.cols, false);
  unpack(again, out.view(), executor);
  const auto size_of_element = size_of(view.dtype);
  for (std::int64_t r = 0; r < view.rows; ++r) {
    for (std::int64_t c = 0; c < view.cols; ++c) {
      const auto at = [&](const MatrixView& m) {
        return static_cast<const char*>(m.data) +
               (r * m.row_stride + c * m.col_stride) * static_cast<std::int64_t>(size_of_element);
      };
      require(std::memcmp(at(view), at(out.view()), size_of_element) == 0, "bit for bit");
    }
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  if (input.ConsumeBool()) {
    stun_ext::fuzz::run_hostile(input);
  } else {
    stun_ext::fuzz::run_round_trip(input);
  }
  return 0;
}
