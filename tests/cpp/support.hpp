// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "stun_ext/cpu.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::test {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Decoders by the definition of the formats, not by bit tricks: independent of the library's.
inline double decode_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? kNaN : sign * kInf;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

inline double decode_bfloat16(std::uint16_t bits) {
  const int exponent = (bits >> 7) & 255;
  const int mantissa = bits & 127;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 255) return mantissa != 0 ? kNaN : sign * kInf;
  return exponent == 0 ? sign * std::ldexp(mantissa, -133) : sign * std::ldexp(128 + mantissa, exponent - 134);
}

/// How the elements of a test matrix lie in memory.
enum class Layout { row_major, padded_rows, transposed, strided };
constexpr Layout kLayouts[] = {Layout::row_major, Layout::padded_rows, Layout::transposed, Layout::strided};

/// A matrix that owns its memory, in any element type and layout, with guard elements around those of the view.
class Matrix {
 public:
  Matrix(DType dtype, std::int64_t rows, std::int64_t cols, Layout layout = Layout::row_major) {
    std::int64_t row_stride = cols, col_stride = 1;
    if (layout == Layout::padded_rows) row_stride = cols + 5;
    if (layout == Layout::transposed) row_stride = 1, col_stride = rows;
    if (layout == Layout::strided) row_stride = 3 * cols + 2, col_stride = 3;
    bytes_.assign(static_cast<std::size_t>((rows + 1) * (3 * cols + 8)) * size_of(dtype), 0x5a);
    view_ = {nullptr, rows, cols, row_stride, col_stride, dtype};
  }

  MatrixView view() {
    MatrixView view = view_;
    view.data = bytes_.data();
    return view;
  }
  ConstMatrixView view() const {
    ConstMatrixView view = view_;
    view.data = bytes_.data();
    return view;
  }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  /// The value, rounded to the element type towards zero for the 2-byte types.
  void set(std::int64_t row, std::int64_t col, double value) {
    void* at = address(row, col);
    switch (view_.dtype) {
      case DType::f32:
        write(at, static_cast<float>(value));
        return;
      case DType::f64:
        write(at, value);
        return;
      case DType::i64:
        write(at, static_cast<std::int64_t>(value));
        return;
      case DType::bf16: {
        const auto narrow = static_cast<float>(value);
        std::uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        write(at, static_cast<std::uint16_t>(bits >> 16));
        return;
      }
      case DType::f16:
        write(at, encode_half(value));
        return;
    }
  }

  double get(std::int64_t row, std::int64_t col) const {
    const void* at = address(row, col);
    switch (view_.dtype) {
      case DType::f32:
        return read<float>(at);
      case DType::f64:
        return read<double>(at);
      case DType::i64:
        return static_cast<double>(read<std::int64_t>(at));
      case DType::bf16:
        return decode_bfloat16(read<std::uint16_t>(at));
      case DType::f16:
        return decode_half(read<std::uint16_t>(at));
    }
    return kNaN;
  }

  void set_bits(std::int64_t row, std::int64_t col, std::uint16_t bits) { write(address(row, col), bits); }

  void fill(const std::function<double(std::int64_t, std::int64_t)>& value) {
    for (std::int64_t r = 0; r < view_.rows; ++r) {
      for (std::int64_t c = 0; c < view_.cols; ++c) set(r, c, value(r, c));
    }
  }

  void fill_normal(std::mt19937& generator) {
    std::normal_distribution<double> normal;
    fill([&](std::int64_t, std::int64_t) { return normal(generator); });
  }

 private:
  template <class T>
  static T read(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static void write(void* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }
  static std::uint16_t encode_half(double value) {
    const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    if (std::isnan(value)) return 0x7e00;
    if (std::isinf(value)) return static_cast<std::uint16_t>(sign | 0x7c00);
    // The largest pattern that does not exceed the magnitude; patterns are in the order of their values.
    std::uint16_t low = 0, high = 0x7c00;
    while (high - low > 1) {
      const auto middle = static_cast<std::uint16_t>((low + high) / 2);
      (decode_half(middle) <= std::abs(value) ? low : high) = middle;
    }
    return static_cast<std::uint16_t>(sign | low);
  }
  std::size_t offset(std::int64_t row, std::int64_t col) const {
    return static_cast<std::size_t>(row * view_.row_stride + col * view_.col_stride) * size_of(view_.dtype);
  }
  void* address(std::int64_t row, std::int64_t col) { return bytes_.data() + offset(row, col); }
  const void* address(std::int64_t row, std::int64_t col) const { return bytes_.data() + offset(row, col); }

  std::vector<unsigned char> bytes_;
  MatrixView view_;  ///< without the address, which changes with copies
};

/// Sets the threads of the default executor for one scope.
class Threads {
 public:
  explicit Threads(int count) : before_(num_threads()) { set_num_threads(count); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

/// Forces an instruction set for one scope; for (const Isa isa : cpu_info().supported) runs through those at hand.
class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : before_(stun_ext::isa()) { set_isa(isa); }
  ~ForcedIsa() { set_isa(before_); }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;

 private:
  Isa before_;
};

/// The call throws std::invalid_argument whose message holds every one of the parts.
inline void expect_error(const std::function<void()>& call, const std::vector<std::string>& parts) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown; expected a message with \"" << parts.front() << '"';
  } catch (const std::invalid_argument& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "message: " << error.what() << "\nlacks: " << part;
    }
  }
}

}  // namespace stun_ext::test
