// SPDX-License-Identifier: Apache-2.0
#include "row_blocks.hpp"

#include <algorithm>

#include "check.hpp"
#include "dispatch.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kBlockRows =
    64;  // two cache lines of a column of 2-byte elements: pages are looked up half as often

std::int64_t block_rows(const ConstMatrixView& matrix) noexcept { return matrix.col_stride == 1 ? 1 : kBlockRows; }

/// Copies a block of rows of the matrix into rows that are `to_stride` elements apart.
template <class Bits, class Transpose>
void gather(const ConstMatrixView& matrix, std::int64_t row, std::int64_t rows, Transpose* transpose, Bits* to,
            std::int64_t to_stride) noexcept {
  const Bits* from = static_cast<const Bits*>(matrix.data) + row * matrix.row_stride;
  if (matrix.row_stride == 1) return transpose(from, matrix.col_stride, rows, matrix.cols, to, to_stride);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Bits* of_row = from + r * matrix.row_stride;
    for (std::int64_t c = 0; c < matrix.cols; ++c) to[r * to_stride + c] = of_row[c * matrix.col_stride];
  }
}

/// The other way round.
template <class Bits, class Transpose>
void scatter(const MatrixView& matrix, std::int64_t row, std::int64_t rows, Transpose* transpose, const Bits* from,
             std::int64_t from_stride) noexcept {
  Bits* to = static_cast<Bits*>(matrix.data) + row * matrix.row_stride;
  if (matrix.row_stride == 1) return transpose(from, from_stride, matrix.cols, rows, to, matrix.col_stride);
  for (std::int64_t r = 0; r < rows; ++r) {
    Bits* of_row = to + r * matrix.row_stride;
    for (std::int64_t c = 0; c < matrix.cols; ++c) of_row[c * matrix.col_stride] = from[r * from_stride + c];
  }
}

}  // namespace

RowBlocks::RowBlocks(const ConstMatrixView& matrix)
    : matrix_(matrix),
      kernels_(&STUN_EXT_KERNELS(transpose)),
      data_(static_cast<const std::byte*>(matrix.data)),
      size_(static_cast<std::int64_t>(size_of(matrix.dtype))),
      row_bytes_(matrix.rows > 1 ? matrix.row_stride * size_ : 0),
      copy_stride_(matrix.cols + kBlockRows),
      block_rows_(std::min(detail::block_rows(matrix), std::max<std::int64_t>(matrix.rows, 1))) {
  if (is_copied()) copy_.resize(static_cast<std::size_t>(block_rows_ * copy_stride_ * size_));
}

void RowBlocks::load(std::int64_t row, std::int64_t count) noexcept {
  row_ = row;
  count_ = count;
  if (!is_copied()) return;
  if (size_ == 4) {
    gather(matrix_, row, count, kernels_->transpose_u32, reinterpret_cast<std::uint32_t*>(copy_.data()), copy_stride_);
  } else {
    gather(matrix_, row, count, kernels_->transpose_u16, reinterpret_cast<std::uint16_t*>(copy_.data()), copy_stride_);
  }
}

void RowBlocks::store(const MatrixView& matrix) const noexcept {
  if (!is_copied()) return;
  if (size_ == 4) {
    scatter(matrix, row_, count_, kernels_->transpose_u32, reinterpret_cast<const std::uint32_t*>(copy_.data()),
            copy_stride_);
  } else {
    scatter(matrix, row_, count_, kernels_->transpose_u16, reinterpret_cast<const std::uint16_t*>(copy_.data()),
            copy_stride_);
  }
}

std::int64_t block_rows_per_task(const ConstMatrixView& matrix, const Executor& executor) noexcept {
  constexpr std::int64_t kTasksPerThread = 8;
  const std::int64_t even = matrix.rows / (kTasksPerThread * executor.concurrency());
  const std::int64_t rows = std::max(rows_per_task(matrix.cols), even);
  const std::int64_t block = block_rows(matrix);
  return (rows + block - 1) / block * block;
}

}  // namespace stun_ext::detail
