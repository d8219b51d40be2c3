// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#pragma GCC visibility push(default)
namespace stun_ext {

/// Element type of a view. Each function states which of them it accepts.
enum class DType : std::uint8_t { f32, f16, bf16, f64, i64 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) noexcept {
  return dtype == DType::f64 || dtype == DType::i64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

/// Name as NumPy and torch spell it, e.g. "bfloat16".
constexpr const char* name_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::f64:
      return "float64";
    case DType::i64:
      return "int64";
  }
  return "unknown";
}

}  // namespace stun_ext
#pragma GCC visibility pop
