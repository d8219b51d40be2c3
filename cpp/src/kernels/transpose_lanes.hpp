// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefetch.hpp"
#include "transpose.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

/// The kernels of an instruction set whose vectors consist of Z::kParts parts of 16 bytes. Z interleaves, in every part
/// alike, the lower or the upper halves of two vectors; `load(from, stride)` fills part p from `from + p * stride`.
template <class Z>
struct TransposeLanes {
  using Value = typename Z::Value;

  /// Columns 0…7 of `from` in every part, 8 rows: vectors of rows 0…7.
  static void square(const std::uint16_t* from, std::int64_t stride, std::uint16_t* to,
                     std::int64_t to_stride) noexcept {
    Value x[8], pair[8], four[8];
    STUN_EXT_UNROLL
    for (int c = 0; c < 8; ++c) x[c] = Z::load(from + c * stride, 8 * stride);
    STUN_EXT_UNROLL
    for (int c = 0; c < 8; c += 2) {  // two columns of rows 0…3 and of rows 4…7
      pair[c] = Z::low16(x[c], x[c + 1]);
      pair[c + 1] = Z::high16(x[c], x[c + 1]);
    }
    STUN_EXT_UNROLL
    for (int c = 0; c < 8; c += 4) {  // four columns of rows 0 and 1, 2 and 3, 4 and 5, 6 and 7
      four[c] = Z::low32(pair[c], pair[c + 2]);
      four[c + 1] = Z::high32(pair[c], pair[c + 2]);
      four[c + 2] = Z::low32(pair[c + 1], pair[c + 3]);
      four[c + 3] = Z::high32(pair[c + 1], pair[c + 3]);
    }
    STUN_EXT_UNROLL
    for (int r = 0; r < 4; ++r) {
      Z::store(to + 2 * r * to_stride, Z::low64(four[r], four[r + 4]));
      Z::store(to + (2 * r + 1) * to_stride, Z::high64(four[r], four[r + 4]));
    }
  }

  static void square(const std::uint32_t* from, std::int64_t stride, std::uint32_t* to,
                     std::int64_t to_stride) noexcept {
    Value x[4];
    STUN_EXT_UNROLL
    for (int c = 0; c < 4; ++c) x[c] = Z::load(from + c * stride, 4 * stride);
    const Value first = Z::low32(x[0], x[1]), second = Z::low32(x[2], x[3]);  // of rows 0 and 1
    const Value third = Z::high32(x[0], x[1]), fourth = Z::high32(x[2], x[3]);
    Z::store(to, Z::low64(first, second));
    Z::store(to + to_stride, Z::high64(first, second));
    Z::store(to + 2 * to_stride, Z::low64(third, fourth));
    Z::store(to + 3 * to_stride, Z::high64(third, fourth));
  }

  template <class Bits, void (*TransposeKernels::*rest)(const Bits*, std::int64_t, std::int64_t, std::int64_t, Bits*,
                                                        std::int64_t) noexcept>
  static void transpose(const Bits* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols, Bits* to,
                        std::int64_t to_stride) noexcept {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(Bits));
    constexpr std::int64_t kRows = 16 / kSize;
    constexpr std::int64_t kCols = Z::kParts * kRows;
    constexpr std::int64_t kAhead = 32;  // lines
    const std::int64_t whole_rows = rows - rows % kRows, whole_cols = cols - cols % kCols;
    const auto square_at = [=](std::int64_t r, std::int64_t c) noexcept {
      square(from + c * from_stride + r, from_stride, to + r * to_stride + c, to_stride);
    };
    // The short side is the one of a block in the second cache; along the long one lies a matrix.
    if (cols >= rows) {
      for (std::int64_t c = 0; c < whole_cols; c += kCols) {
        for (std::int64_t k = c + kAhead; k < c + kAhead + kCols && k < cols; ++k) {
          prefetch<0, Cache::second>(from + k * from_stride, rows * kSize);
        }
        for (std::int64_t r = 0; r < whole_rows; r += kRows) square_at(r, c);
      }
    } else {
      for (std::int64_t r = 0; r < whole_rows; r += kRows) {
        for (std::int64_t k = r + kAhead; k < r + kAhead + kRows && k < rows; ++k) {
          prefetch<0, Cache::second>(to + k * to_stride, cols * kSize);
        }
        for (std::int64_t c = 0; c < whole_cols; c += kCols) square_at(r, c);
      }
    }
    const auto scalar = transpose_scalar.*rest;
    scalar(from + whole_cols * from_stride, from_stride, rows, cols - whole_cols, to + whole_cols, to_stride);
    scalar(from + whole_rows, from_stride, rows - whole_rows, whole_cols, to + whole_rows * to_stride, to_stride);
  }

  static constexpr TransposeKernels kernels() noexcept {
    return {transpose<std::uint16_t, &TransposeKernels::transpose_u16>,
            transpose<std::uint32_t, &TransposeKernels::transpose_u32>};
  }
};

}  // namespace
}  // namespace stun_ext::detail
