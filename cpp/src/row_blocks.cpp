// SPDX-License-Identifier: Apache-2.0
#include "row_blocks.hpp"

#include <algorithm>

#include "check.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kBlockRows = 32;  // one cache line of a column of 2-byte elements

std::int64_t block_rows(const ConstMatrixView& matrix) noexcept { return matrix.col_stride == 1 ? 1 : kBlockRows; }

/// Calls copy(r, c) for every element of the block, in the order in which the matrix lies in memory; a transposed one
/// in squares, so that lines of both sides stay in the first cache.
template <class Copy>
void for_each_element(const ConstMatrixView& matrix, std::int64_t rows, Copy&& copy) noexcept {
  if (!is_column_major(matrix)) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < matrix.cols; ++c) copy(r, c);
    }
    return;
  }
  constexpr std::int64_t kCols = 32;
  for (std::int64_t begin = 0; begin < matrix.cols; begin += kCols) {
    const std::int64_t end = std::min(matrix.cols, begin + kCols);
    for (std::int64_t c = begin; c < end; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) copy(r, c);
    }
  }
}

template <class Bits>
void gather(const ConstMatrixView& matrix, std::int64_t row, std::int64_t rows, std::byte* to,
            std::int64_t to_bytes) noexcept {
  const Bits* from = static_cast<const Bits*>(matrix.data) + row * matrix.row_stride;
  for_each_element(matrix, rows, [&](std::int64_t r, std::int64_t c) {
    reinterpret_cast<Bits*>(to + r * to_bytes)[c] = from[r * matrix.row_stride + c * matrix.col_stride];
  });
}

template <class Bits>
void scatter(const MatrixView& matrix, std::int64_t row, std::int64_t rows, const std::byte* from,
             std::int64_t from_bytes) noexcept {
  Bits* to = static_cast<Bits*>(matrix.data) + row * matrix.row_stride;
  for_each_element(matrix, rows, [&](std::int64_t r, std::int64_t c) {
    to[r * matrix.row_stride + c * matrix.col_stride] = reinterpret_cast<const Bits*>(from + r * from_bytes)[c];
  });
}

}  // namespace

RowBlocks::RowBlocks(const ConstMatrixView& matrix)
    : matrix_(matrix),
      data_(static_cast<const std::byte*>(matrix.data)),
      row_bytes_(matrix.rows > 1 ? matrix.row_stride * static_cast<std::int64_t>(size_of(matrix.dtype)) : 0),
      copy_bytes_((matrix.cols + kBlockRows) * static_cast<std::int64_t>(size_of(matrix.dtype))),
      block_rows_(std::min(detail::block_rows(matrix), std::max<std::int64_t>(matrix.rows, 1))) {
  if (is_copied()) copy_.resize(static_cast<std::size_t>(block_rows_ * copy_bytes_));
}

void RowBlocks::load(std::int64_t row, std::int64_t count) noexcept {
  row_ = row;
  count_ = count;
  if (!is_copied()) return;
  if (matrix_.dtype == DType::f32) {
    gather<std::uint32_t>(matrix_, row, count, copy_.data(), copy_bytes_);
  } else {
    gather<std::uint16_t>(matrix_, row, count, copy_.data(), copy_bytes_);
  }
}

void RowBlocks::store(const MatrixView& matrix) const noexcept {
  if (!is_copied()) return;
  if (matrix.dtype == DType::f32) {
    scatter<std::uint32_t>(matrix, row_, count_, copy_.data(), copy_bytes_);
  } else {
    scatter<std::uint16_t>(matrix, row_, count_, copy_.data(), copy_bytes_);
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
