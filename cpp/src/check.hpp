// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Throws std::invalid_argument with "[operation] parts…".
template <class... Parts>
[[noreturn]] void fail(const char* operation, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << operation << "] ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

/// Shape without negative sizes, memory where there are elements, and one of the accepted element types.
void check_view(const char* operation, const char* name, const ConstMatrixView& view,
                std::initializer_list<DType> accepted);

/// As check_view; also refuses strides with which two elements share memory (an expanded tensor).
void check_writable_view(const char* operation, const char* name, const MatrixView& view,
                         std::initializer_list<DType> accepted);

/// Refuses NaN and Inf, naming the lowest row that holds one and its lowest column. Reads in memory order.
void check_finite(const char* operation, const char* name, const ConstMatrixView& view, Executor& executor);

/// Refuses NaN alone, as check_finite.
void check_not_nan(const char* operation, const char* name, const ConstMatrixView& view, Executor& executor);

/// Rows for one task so that it handles about 64k elements: enough to pay for handing it out.
constexpr std::int64_t rows_per_task(std::int64_t cols) noexcept {
  constexpr std::int64_t kElements = std::int64_t{1} << 16;
  return cols >= kElements ? 1 : cols <= 1 ? kElements : kElements / cols;
}

}  // namespace stun_ext::detail
