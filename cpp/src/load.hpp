// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// The bits of an IEEE half and of a bfloat16, so that element types can be told apart in templates.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

inline float float_from_bits(std::uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_from_float(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) noexcept { return value; }
inline float to_float(BFloat16 value) noexcept { return float_from_bits(std::uint32_t{value.bits} << 16); }

/// Exact, and free of branches and of float32 subnormals, so that it vectorises and ignores flush-to-zero modes.
inline float to_float(Half value) noexcept {
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t subnormal = bits_from_float(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = (magnitude << 13) + (224u << 23);  // Inf and NaN: exponent 31 becomes 255
  const std::uint32_t bits = magnitude < 0x0400u ? subnormal : magnitude < 0x7c00u ? normal : special;
  return float_from_bits(bits | sign);
}

template <class To>
struct Convert {
  static To from(double value) noexcept { return static_cast<To>(value); }
  static To from(std::int64_t value) noexcept { return static_cast<To>(value); }
  template <class From>
  static To from(From value) noexcept {
    return static_cast<To>(to_float(value));
  }
};

/// Calls `function(pointer)` with the view's data as a pointer to its element type.
template <class Function>
decltype(auto) dispatch(const ConstMatrixView& view, Function&& function) {
  switch (view.dtype) {
    case DType::f32:
      return function(static_cast<const float*>(view.data));
    case DType::f16:
      return function(static_cast<const Half*>(view.data));
    case DType::bf16:
      return function(static_cast<const BFloat16*>(view.data));
    case DType::i64:
      return function(static_cast<const std::int64_t*>(view.data));
    case DType::f64:
      break;
  }
  return function(static_cast<const double*>(view.data));
}

/// Of the lowest number, which has no counterpart, the highest: a dimension of one element may have any stride.
inline std::int64_t magnitude(std::int64_t stride) noexcept {
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  return stride >= 0 ? stride : stride == kLowest ? std::numeric_limits<std::int64_t>::max() : -stride;
}

/// Columns lie closer in memory than rows do: a transposed matrix.
inline bool is_column_major(const ConstMatrixView& view) noexcept {
  return magnitude(view.row_stride) < magnitude(view.col_stride);
}

template <class From, class To>
void load_block_as(const From* data, const ConstMatrixView& view, std::int64_t row, std::int64_t rows, std::int64_t col,
                   std::int64_t cols, To* out, std::int64_t out_stride) noexcept {
  const From* origin = data + row * view.row_stride + col * view.col_stride;
  if (view.col_stride == 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const From* in = origin + r * view.row_stride;
      To* to = out + r * out_stride;
      for (std::int64_t c = 0; c < cols; ++c) to[c] = Convert<To>::from(in[c]);
    }
    return;
  }
  if (!is_column_major(view)) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const From* in = origin + r * view.row_stride;
      for (std::int64_t c = 0; c < cols; ++c) out[r * out_stride + c] = Convert<To>::from(in[c * view.col_stride]);
    }
    return;
  }
  // Read along the columns, where the memory is, into a small square that is transposed in cache.
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kCols = 16;
  To square[kCols][kRows];
  for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const std::int64_t block_rows = std::min(kRows, rows - r0);
    for (std::int64_t c0 = 0; c0 < cols; c0 += kCols) {
      const std::int64_t block_cols = std::min(kCols, cols - c0);
      for (std::int64_t c = 0; c < block_cols; ++c) {
        const From* in = origin + r0 * view.row_stride + (c0 + c) * view.col_stride;
        if (view.row_stride == 1) {
          for (std::int64_t r = 0; r < block_rows; ++r) square[c][r] = Convert<To>::from(in[r]);
        } else {
          for (std::int64_t r = 0; r < block_rows; ++r) square[c][r] = Convert<To>::from(in[r * view.row_stride]);
        }
      }
      for (std::int64_t r = 0; r < block_rows; ++r) {
        To* to = out + (r0 + r) * out_stride + c0;
        for (std::int64_t c = 0; c < block_cols; ++c) to[c] = square[c][r];
      }
    }
  }
}

/// Copies and converts a block of any element type and any strides into rows of float or double, `out_stride` apart.
/// float16 and bfloat16 convert exactly.
template <class To>
void load_block(const ConstMatrixView& view, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                To* out, std::int64_t out_stride) noexcept {
  if (rows <= 0 || cols <= 0) return;  // the address of no elements may be null
  dispatch(view, [&](const auto* data) { load_block_as(data, view, row, rows, col, cols, out, out_stride); });
}

/// One element as double. For checks and small matrices; loops over many use load_block.
inline double element(const ConstMatrixView& view, std::int64_t row, std::int64_t col) noexcept {
  return dispatch(view, [&](const auto* data) {
    return Convert<double>::from(data[row * view.row_stride + col * view.col_stride]);
  });
}

/// Writes a distance into a float32 or float64 matrix.
inline void store(const MatrixView& view, std::int64_t row, std::int64_t col, double value) noexcept {
  const std::int64_t offset = row * view.row_stride + col * view.col_stride;
  if (view.dtype == DType::f32) {
    static_cast<float*>(view.data)[offset] = static_cast<float>(value);
  } else {
    static_cast<double*>(view.data)[offset] = value;
  }
}

}  // namespace stun_ext::detail
