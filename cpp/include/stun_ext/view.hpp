// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "stun_ext/dtype.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// A contiguous, unowned sequence (std::span is C++20).
template <class T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <class U, class = std::enable_if_t<std::is_convertible_v<U (*)[], T (*)[]>>>
  constexpr Span(Span<U> other) noexcept : data_(other.data()), size_(other.size()) {}
  Span(std::vector<std::remove_const_t<T>>& values) noexcept : data_(values.data()), size_(values.size()) {}
  template <class U = T, class = std::enable_if_t<std::is_const_v<U>>>
  Span(const std::vector<std::remove_const_t<T>>& values) noexcept : data_(values.data()), size_(values.size()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// An unowned, read-only matrix of any element type and any strides, counted in elements.
/// A transposed weight (in, out) is passed as rows = out, row_stride = 1, col_stride = out.
struct ConstMatrixView {
  const void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
  DType dtype = DType::f32;
};

/// As ConstMatrixView, writable. Distinct elements must not overlap.
struct MatrixView {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
  DType dtype = DType::f32;

  operator ConstMatrixView() const noexcept { return {data, rows, cols, row_stride, col_stride, dtype}; }
};

}  // namespace stun_ext
#pragma GCC visibility pop
