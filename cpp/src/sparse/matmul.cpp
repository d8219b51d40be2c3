// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/matmul.hpp"

#include <algorithm>
#include <vector>

#include "aligned.hpp"
#include "check.hpp"
#include "dispatch.hpp"
#include "sparse/activations.hpp"
#include "sparse/matmul.hpp"
#include "sparse/packed.hpp"

namespace stun_ext {
namespace detail {
namespace {

Multiply<float> float_kernel(DType dtype) {
  const MatmulKernels& kernels = STUN_EXT_KERNELS(matmul);
  return dtype == DType::f32 ? kernels.f32 : dtype == DType::f16 ? kernels.f16 : kernels.bf16;
}

}  // namespace

MatmulRows rows_of(const PackedMatrix& weight) noexcept {
  MatmulRows rows;
  rows.values = weight.values().data();
  rows.masks = weight.masks().data();
  rows.offsets = weight.offsets().data();
  rows.rows = weight.rows();
  rows.cols = weight.cols();
  rows.blocks = packed_blocks(rows.cols);
  return rows;
}

MatmulRows rows_of(const ConstMatrixView& weight) noexcept {
  MatmulRows rows;
  rows.values = weight.data;
  rows.rows = weight.rows;
  rows.cols = weight.cols;
  rows.row_stride = weight.rows > 1 ? weight.row_stride : 0;
  rows.blocks = packed_blocks(rows.cols);
  return rows;
}

bool has_products(Products products) {
  if (products == Products::f32) return true;
#if defined(__x86_64__)
  if (isa() != Isa::avx512 || !features().avx512vbmi2) return false;
  return products == Products::bf16 ? features().avx512bf16 : can_use_tiles();
#else
  return false;
#endif
}

Products choose_products(DType weight, DType x, std::int64_t tokens) {
  constexpr std::int64_t kTilesFrom = 3;  // benchmarks/results/ops_sparse.md
  if (weight != DType::bf16 || x != DType::bf16) return Products::f32;
  if (tokens >= kTilesFrom && has_products(Products::tiles)) return Products::tiles;
  return has_products(Products::bf16) ? Products::bf16 : Products::f32;
}

void multiply_groups(Products products, DType dtype, const MatmulRows& weight, std::int64_t begin, std::int64_t end,
                     const void* form, std::int64_t tokens, float* y, std::int64_t y_stride) noexcept {
#if defined(__x86_64__)
  if (products == Products::tiles) {
    return matmul_bf16_amx(weight, begin, end, static_cast<const std::uint32_t*>(form), tokens, y, y_stride);
  }
  if (products == Products::bf16) {
    return matmul_bf16_avx512bf16(weight, begin, end, static_cast<const std::uint16_t*>(form), tokens, y, y_stride);
  }
#endif
  static_cast<void>(products);
  float_kernel(dtype)(weight, begin, end, static_cast<const float*>(form), tokens, y, y_stride);
}

void multiply(Products products, ConstMatrixView x, const MatmulRows& weight, DType dtype, MatrixView y,
              Executor& executor) {
  if (y.rows == 0 || y.cols == 0) return;
  if (x.cols == 0) {
    const std::vector<float> zeros(static_cast<std::size_t>(y.cols));
    return store_block(zeros.data(), 0, y, 0, y.cols);
  }
  const LineBytes form(form_bytes(products, x.rows, x.cols));
  auto write = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) write_token(products, x, m, form.data(), m, x.rows);
  };
  const std::int64_t tokens_per_task = 4 * rows_per_task(x.cols);  // worth starting a thread for
  executor.parallel_for(x.rows, (tokens_per_task + kFormTokens - 1) / kFormTokens * kFormTokens, write);

  auto task = [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = (end - begin) * kPackedRows, first = begin * kPackedRows;
    const LineBytes sums(rows * y.rows * static_cast<std::int64_t>(sizeof(float)));
    multiply_groups(products, dtype, weight, begin, end, form.data(), y.rows, sums.as<float>(), rows);
    store_block(sums.as<float>(), rows, y, first, std::min(rows, weight.rows - first));
  };
  executor.parallel_for(packed_groups(weight.rows),
                        packed_groups_per_task(weight.rows, weight.cols, kTileGroups, executor), task);
}

}  // namespace detail

namespace {

constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::f16, DType::bf16};

void check_tokens(const char* operation, const ConstMatrixView& x, const MatrixView& y, std::int64_t rows,
                  std::int64_t cols) {
  detail::check_view(operation, "x", x, kFloats);
  detail::check_writable_view(operation, "y", y, kFloats);
  if (x.cols != cols) {
    detail::fail(operation, "x must have the ", cols, " columns of the weight, got [", x.rows, ", ", x.cols, "]");
  }
  if (y.rows != x.rows || y.cols != rows) {
    detail::fail(operation, "y must be [", x.rows, ", ", rows, "], got [", y.rows, ", ", y.cols, "]");
  }
}

}  // namespace

void packed_matmul(ConstMatrixView x, const PackedMatrix& weight, MatrixView y, Executor& executor) {
  check_tokens("packed_matmul", x, y, weight.rows(), weight.cols());
  const detail::Products products = detail::choose_products(weight.dtype(), x.dtype, x.rows);
  detail::multiply(products, x, detail::rows_of(weight), weight.dtype(), y, executor);
}

void dense_matmul(ConstMatrixView x, ConstMatrixView weight, MatrixView y, Executor& executor) {
  constexpr const char* kOperation = "dense_matmul";
  detail::check_view(kOperation, "weight", weight, kFloats);
  if (weight.cols > 1 && weight.col_stride != 1) {
    detail::fail(kOperation, "weight must have rows of contiguous elements, got column stride ", weight.col_stride);
  }
  check_tokens(kOperation, x, y, weight.rows, weight.cols);
  const detail::Products products = detail::choose_products(weight.dtype, x.dtype, x.rows);
  detail::multiply(products, x, detail::rows_of(weight), weight.dtype, y, executor);
}

}  // namespace stun_ext
