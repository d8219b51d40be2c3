// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

// Pruned weights as a bitmap and the values that are left: q + 1/16 of the dense bytes for a share q of 2-byte values.
//
// Rows are taken in groups of kPackedRows, columns in blocks of kPackedCols; the last ones may be ragged. With
// n_blocks = ceil(cols / kPackedCols), for group g, block b and row r of the group:
//   masks[(g * n_blocks + b) * kPackedRows + r]  bit c is set if the weight at row g * kPackedRows + r, column
//                                                b * kPackedCols + c is present; bits outside of the matrix are 0
//   values                                       the present weights in the order of the masks, of a mask from its
//                                                lowest bit up; then zero bytes, see packed_value_bytes
// A weight is absent if its bits are those of +0; -0.0 and NaN payloads are kept. Numbers are little-endian. Nothing
// depends on the instruction set, and kernels read both buffers where they lie, so that a mapped file will do.
constexpr std::int64_t kPackedRows = 4;
constexpr std::int64_t kPackedCols = 32;

/// Bytes of the values buffer for `nnz` values: whole cache lines, and one more, so that a kernel may read a whole
/// vector from any value on.
/// @throws std::invalid_argument if `nnz` is negative or beyond any memory, or dtype is none of f32, f16, bf16.
std::int64_t packed_value_bytes(std::int64_t nnz, DType dtype);

/// How large a packed matrix is.
struct PackedSize {
  std::int64_t nnz = 0;          ///< weights that are present
  std::int64_t value_bytes = 0;  ///< size of the values buffer
  std::int64_t masks = 0;        ///< number of 32-bit masks

  /// Bytes of both buffers.
  std::int64_t bytes() const noexcept { return value_bytes + 4 * masks; }
};

/// The sizes that pack_into needs for this matrix.
/// @param weight  [rows, cols] f32, f16 or bf16, any strides; any values.
PackedSize packed_size(ConstMatrixView weight, Executor& executor = default_executor());

/// A packed matrix that has been checked: no other can be made. Copies share the buffers.
class PackedMatrix {
 public:
  /// 0 × 0.
  PackedMatrix() noexcept = default;

  /// A matrix in buffers of the caller's, which must live and stay as they are as long as it and its copies do. Reads
  /// every mask. Buffers may be hostile: a matrix is made only if each value that a mask announces is there.
  ///
  /// @param values  packed_value_bytes(number of bits set in `masks`, dtype) bytes, aligned to an element, better
  /// to 64.
  /// @param masks   kPackedRows · ceil(rows / kPackedRows) · ceil(cols / kPackedCols), aligned to 4, better to 64.
  /// @throws std::invalid_argument if a size, an alignment or the number of bits set is wrong, if a bit outside of the
  ///         matrix is set, if the bytes after the last value are not zero, or if that is +0.
  static PackedMatrix from_buffers(std::int64_t rows, std::int64_t cols, DType dtype, Span<const std::byte> values,
                                   Span<const std::uint32_t> masks, Executor& executor = default_executor());

  std::int64_t rows() const noexcept { return rows_; }
  std::int64_t cols() const noexcept { return cols_; }
  DType dtype() const noexcept { return dtype_; }
  std::int64_t nnz() const noexcept { return offsets_.empty() ? 0 : offsets_[offsets_.size() - 1]; }
  Span<const std::byte> values() const noexcept { return values_; }
  Span<const std::uint32_t> masks() const noexcept { return masks_; }

  /// Index in `values` of the first value of each group of rows, and the number of values. Derived, not stored.
  Span<const std::int64_t> offsets() const noexcept { return offsets_; }

 private:
  friend PackedMatrix pack(ConstMatrixView weight, Executor& executor);

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  DType dtype_ = DType::bf16;
  Span<const std::byte> values_;
  Span<const std::uint32_t> masks_;
  Span<const std::int64_t> offsets_;
  std::shared_ptr<const void> storage_;  ///< of the offsets, and of the buffers where they are not the caller's
};

/// Packs into memory of its own, aligned to 64 bytes.
/// @param weight  as in packed_size.
PackedMatrix pack(ConstMatrixView weight, Executor& executor = default_executor());

/// Packs into buffers of the caller's, whose sizes are those of packed_size exactly; every byte is written.
/// @throws std::invalid_argument if a size or an alignment is wrong. `weight` must not change meanwhile.
void pack_into(ConstMatrixView weight, Span<std::byte> values, Span<std::uint32_t> masks,
               Executor& executor = default_executor());

/// The dense matrix, bit for bit.
/// @param weight  [matrix.rows(), matrix.cols()] of the matrix's dtype, any strides.
void unpack(const PackedMatrix& matrix, MatrixView weight, Executor& executor = default_executor());

}  // namespace stun_ext
#pragma GCC visibility pop
