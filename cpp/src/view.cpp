// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/view.hpp"

#include <algorithm>
#include <atomic>

#include "check.hpp"
#include "dispatch.hpp"
#include "kernels/check.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

// The exponent bits of each element type; all set means NaN or Inf.
template <class Element>
struct Exponent;
template <>
struct Exponent<float> {
  using Bits = std::uint32_t;
  static constexpr Bits mask = 0x7f800000u, magnitude = 0x7fffffffu;
};
template <>
struct Exponent<double> {
  using Bits = std::uint64_t;
  static constexpr Bits mask = 0x7ff0000000000000u, magnitude = 0x7fffffffffffffffu;
};
template <>
struct Exponent<Half> {
  using Bits = std::uint16_t;
  static constexpr Bits mask = 0x7c00u, magnitude = 0x7fffu;
};
template <>
struct Exponent<BFloat16> {
  using Bits = std::uint16_t;
  static constexpr Bits mask = 0x7f80u, magnitude = 0x7fffu;
};

enum class Refused { nan_and_inf, nan };

template <Refused refused, class Element>
constexpr typename Exponent<Element>::Bits highest_good() noexcept {
  using E = Exponent<Element>;
  return refused == Refused::nan ? E::mask : E::mask - 1;
}

template <Refused refused, class Element>
bool is_bad(const Element& value) noexcept {
  typename Exponent<Element>::Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits & Exponent<Element>::magnitude) > highest_good<refused, Element>();
}

// Integers, the fallback of the tests on floats, are always good.
template <Refused refused>
bool is_bad(const std::int64_t&) noexcept {
  return false;
}

template <Refused refused, class Element>
bool any_bad(const CheckKernels& kernels, const Element* data, std::int64_t count, std::int64_t stride) noexcept {
  if constexpr (sizeof(Element) == 2) {
    if (stride == 1) {
      return kernels.any_above_u16(reinterpret_cast<const std::uint16_t*>(data), count,
                                   highest_good<refused, Element>());
    }
  } else if constexpr (sizeof(Element) == 4) {
    if (stride == 1) {
      return kernels.any_above_u32(reinterpret_cast<const std::uint32_t*>(data), count,
                                   highest_good<refused, Element>());
    }
  }
  unsigned bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= static_cast<unsigned>(is_bad<refused>(data[i * stride]));
  return bad != 0;
}

template <Refused refused>
void check_elements(const char* operation, const char* name, const ConstMatrixView& view, Executor& executor) {
  if (view.dtype == DType::i64 || view.rows == 0 || view.cols == 0) return;
  const bool column_major = is_column_major(view);
  const std::int64_t lines = column_major ? view.cols : view.rows;
  const std::int64_t length = column_major ? view.rows : view.cols;
  const std::int64_t line_stride = column_major ? view.col_stride : view.row_stride;
  const std::int64_t stride = column_major ? view.row_stride : view.col_stride;
  const CheckKernels& kernels = STUN_EXT_KERNELS(check);
  std::atomic<bool> bad{false};
  auto scan = [&](std::int64_t begin, std::int64_t end) {
    dispatch(view, [&](const auto* data) {
      for (std::int64_t line = begin; line < end; ++line) {
        if (any_bad<refused>(kernels, data + line * line_stride, length, stride)) {
          bad.store(true, std::memory_order_relaxed);
          return;
        }
      }
    });
  };
  executor.parallel_for(lines, rows_per_task(length), scan);
  if (!bad.load()) return;
  // Found again in row order: the message must not depend on the number of threads.
  dispatch(view, [&](const auto* data) {
    for (std::int64_t r = 0; r < view.rows; ++r) {
      for (std::int64_t c = 0; c < view.cols; ++c) {
        if (is_bad<refused>(data[r * view.row_stride + c * view.col_stride])) {
          fail(operation, name, refused == Refused::nan ? " must not hold NaN, got " : " must be finite, got ",
               element(view, r, c), " in row ", r, ", column ", c);
        }
      }
    }
  });
}

}  // namespace

void check_view(const char* operation, const char* name, const ConstMatrixView& view,
                std::initializer_list<DType> accepted) {
  if (view.rows < 0 || view.cols < 0) {
    fail(operation, name, " must not have a negative size, got [", view.rows, ", ", view.cols, "]");
  }
  if (view.data == nullptr && view.rows > 0 && view.cols > 0) {
    fail(operation, name, " must not be null, got [", view.rows, ", ", view.cols, "] elements at address 0");
  }
  // Strides that reach beyond any memory; offsets of elements would overflow.
  const double reach =
      static_cast<double>(std::max<std::int64_t>(view.rows - 1, 0)) * std::abs(static_cast<double>(view.row_stride)) +
      static_cast<double>(std::max<std::int64_t>(view.cols - 1, 0)) * std::abs(static_cast<double>(view.col_stride));
  if (!(reach < 0x1p60)) {
    fail(operation, name, " must lie in memory, got strides [", view.row_stride, ", ", view.col_stride, "] for shape [",
         view.rows, ", ", view.cols, "]");
  }
  for (const DType dtype : accepted) {
    if (dtype == view.dtype) return;
  }
  std::string names;
  for (const DType dtype : accepted) names += (names.empty() ? "" : ", ") + std::string(name_of(dtype));
  fail(operation, name, " must be one of ", names, ", got ", name_of(view.dtype));
}

void check_writable_view(const char* operation, const char* name, const MatrixView& view,
                         std::initializer_list<DType> accepted) {
  check_view(operation, name, view, accepted);
  if (view.rows == 0 || view.cols == 0) return;
  // Without overlap the outer stride steps over everything that the inner dimension spans.
  const bool column_major = is_column_major(view);
  const std::int64_t inner = column_major ? magnitude(view.row_stride) : magnitude(view.col_stride);
  const std::int64_t outer = column_major ? magnitude(view.col_stride) : magnitude(view.row_stride);
  const std::int64_t inner_size = column_major ? view.rows : view.cols;
  const std::int64_t outer_size = column_major ? view.cols : view.rows;
  const bool inner_overlaps = inner_size > 1 && inner == 0;
  const bool outer_overlaps = outer_size > 1 && outer <= inner * (inner_size - 1);
  if (inner_overlaps || outer_overlaps) {
    fail(operation, name, " must not overlap itself to be written, got strides [", view.row_stride, ", ",
         view.col_stride, "] for shape [", view.rows, ", ", view.cols, "]");
  }
}

void check_finite(const char* operation, const char* name, const ConstMatrixView& view, Executor& executor) {
  check_elements<Refused::nan_and_inf>(operation, name, view, executor);
}

void check_not_nan(const char* operation, const char* name, const ConstMatrixView& view, Executor& executor) {
  check_elements<Refused::nan>(operation, name, view, executor);
}

}  // namespace stun_ext::detail
