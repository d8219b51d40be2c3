// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "aligned.hpp"
#include "kernels/transpose.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Reads the rows of a 2- or 4-byte matrix as rows whose elements lie together: where they do, they are left in place;
/// rows of a transposed or strided one are copied, a block of them at a time, so that every cache line that is fetched
/// is used whole. One object per task: it owns the copy.
class RowBlocks {
 public:
  explicit RowBlocks(const ConstMatrixView& matrix);

  /// Calls `function(first, count)` for blocks of rows that cover [begin, end); row(0) to row(count - 1) are theirs.
  template <class Function>
  void for_each_block(std::int64_t begin, std::int64_t end, Function&& function) {
    if (matrix_.cols == 0) return;  // rows without elements may have no address
    for (std::int64_t row = begin; row < end; row += block_rows_) {
      const std::int64_t count = row + block_rows_ < end ? block_rows_ : end - row;
      load(row, count);
      function(row, count);
    }
  }

  /// The r-th row loaded.
  const void* row(std::int64_t r) const noexcept {
    return is_copied() ? copy_.data() + r * copy_stride_ * size_ : data_ + (row_ + r) * row_bytes_;
  }

  /// The r-th row loaded, to be changed in `matrix`, the one read; where it is a copy, store() writes the block back.
  void* row_of(const MatrixView& matrix, std::int64_t r) noexcept {
    return is_copied() ? static_cast<void*>(copy_.data() + r * copy_stride_ * size_)
                       : static_cast<std::byte*>(matrix.data) + (row_ + r) * row_bytes_;
  }
  void store(const MatrixView& matrix) const noexcept;

 private:
  void load(std::int64_t row, std::int64_t count) noexcept;
  bool is_copied() const noexcept { return matrix_.col_stride != 1; }

  ConstMatrixView matrix_;
  const TransposeKernels* kernels_;
  const std::byte* data_;
  std::int64_t size_;         ///< of an element
  std::int64_t row_bytes_;    ///< between rows of the matrix
  std::int64_t copy_stride_;  ///< between rows of the copy: no power of two, or a column would share one cache set
  std::int64_t block_rows_;
  std::int64_t row_ = 0;
  std::int64_t count_ = 0;
  AlignedVector<std::byte> copy_;
};

/// Rows that hold anything: without columns there are none, however many there are said to be.
inline std::int64_t rows_to_visit(const ConstMatrixView& matrix) noexcept { return matrix.cols > 0 ? matrix.rows : 0; }

/// Rows for one task: whole blocks, and only a few tasks for each thread, for each of them allocates its workspace.
std::int64_t block_rows_per_task(const ConstMatrixView& matrix, const Executor& executor) noexcept;

}  // namespace stun_ext::detail
