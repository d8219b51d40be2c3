// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <limits>

namespace stun_ext::cuda {
namespace detail {
namespace {

/// Of the lowest number, which has no counterpart, the highest.
std::int64_t magnitude(std::int64_t stride) noexcept {
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  return stride >= 0 ? stride : stride == kLowest ? std::numeric_limits<std::int64_t>::max() : -stride;
}

bool is_aligned(const void* data, DType dtype) noexcept {
  return reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) == 0;
}

}  // namespace

void check_weights(const char* operation, const char* name, const Batch<ConstMatrixView>& weight, bool writable) {
  const ConstMatrixView& view = weight.first;
  if (view.dtype != DType::f32 && view.dtype != DType::f16 && view.dtype != DType::bf16) {
    fail(operation, name, " must have dtype float32, float16 or bfloat16, got ", name_of(view.dtype));
  }
  if (weight.count < 0 || view.rows < 0 || view.cols < 0) {
    fail(operation, name, " must not have a negative size, got [", weight.count, ", ", view.rows, ", ", view.cols, "]");
  }
  if (weight.count == 0 || view.rows == 0 || view.cols == 0) return;
  if (view.data == nullptr) fail(operation, name, " must not be null");
  if (!is_aligned(view.data, view.dtype)) fail(operation, name, " must be aligned to whole elements");
  if (!writable) return;
  // One order of nesting of the three dimensions must leave no two elements in one place.
  struct Axis {
    std::int64_t size, stride;
  };
  Axis axes[3] = {{view.cols, magnitude(view.col_stride)},
                  {view.rows, magnitude(view.row_stride)},
                  {weight.count, magnitude(weight.stride)}};
  for (int pass = 0; pass < 2; ++pass) {
    for (int i = 0; i < 2; ++i) {
      if (axes[i].size <= 1 || (axes[i + 1].size > 1 && axes[i].stride > axes[i + 1].stride)) {
        const Axis axis = axes[i];
        axes[i] = axes[i + 1];
        axes[i + 1] = axis;
      }
    }
  }
  std::int64_t extent = 0;
  for (const Axis& axis : axes) {
    if (axis.size <= 1) continue;
    if (axis.stride <= extent) fail(operation, name, " must not share memory between its elements");
    if (axis.stride > (std::numeric_limits<std::int64_t>::max() - extent) / axis.size) {
      fail(operation, name, " must fit into memory, got stride ", axis.stride);
    }
    extent += (axis.size - 1) * axis.stride;
  }
}

void check_mask(const char* operation, const Batch<MaskView>& mask, const Batch<ConstMatrixView>& weight) {
  const MaskView& view = mask.first;
  if (mask.count != weight.count || view.rows != weight.first.rows || view.cols != weight.first.cols) {
    fail(operation, "mask must be [", weight.count, ", ", weight.first.rows, ", ", weight.first.cols, "], got [",
         mask.count, ", ", view.rows, ", ", view.cols, "]");
  }
  if (mask.count == 0 || view.rows == 0 || view.cols == 0) return;
  if (view.data == nullptr) fail(operation, "mask must not be null");
  if (view.rows > 1 && magnitude(view.row_stride) < view.cols) {
    fail(operation, "mask rows must not overlap, got row stride ", view.row_stride, " for ", view.cols, " columns");
  }
  if (mask.count > 1 && magnitude(mask.stride) < (view.rows - 1) * magnitude(view.row_stride) + view.cols) {
    fail(operation, "masks must not overlap, got stride ", mask.stride);
  }
}

void check_counts(const char* operation, const PruneCounts& counts, std::int64_t cols) {
  if (cols > kMostColumns) fail(operation, "a row may have at most ", kMostColumns, " columns, got ", cols);
  if (counts.per_row == nullptr && (counts.each < 0 || counts.each > cols)) {
    fail(operation, "prune_counts must be in [0, ", cols, "], got ", counts.each);
  }
}

void check_pattern(const char* operation, const char* name, std::int64_t cols, std::int64_t n, std::int64_t m) {
  if (m < 2) fail(operation, "m must be at least 2, got ", m);
  if (n < 1 || n >= m) fail(operation, "n must be in [1, ", m - 1, "], got ", n);
  if (cols % m != 0) fail(operation, name, " must have a multiple of m = ", m, " columns, got ", cols);
}

void check_status(const char* operation, const MaskStatus* status) {
  if (status == nullptr) fail(operation, "status must not be null");
  if (reinterpret_cast<std::uintptr_t>(status) % alignof(MaskStatus) != 0) fail(operation, "status must be aligned");
}

}  // namespace detail

void throw_if_illegal(const char* operation, const char* name, const MaskStatus& status, std::int64_t rows,
                      std::int64_t cols, bool only_nan) {
  const auto matrix = [&](std::uint64_t index) {
    return index == 0 ? std::string() : " of matrix " + std::to_string(index);
  };
  const auto row_count = static_cast<std::uint64_t>(rows), col_count = static_cast<std::uint64_t>(cols);
  if (status.illegal_count != 0) {
    const std::uint64_t row = ~status.illegal_count;
    detail::fail(operation, "prune_counts must be in [0, ", cols, "], got another value for row ", row % row_count,
                 matrix(row / row_count));
  }
  if (status.illegal_norm != 0) {
    const std::uint64_t feature = ~status.illegal_norm;
    detail::fail(operation, "input_sq_norm must be finite and not negative, got another value for feature ",
                 feature % col_count, matrix(feature / col_count));
  }
  if (status.not_finite != 0) {
    const std::uint64_t place = ~status.not_finite;
    const std::uint64_t row = place / col_count;
    detail::fail(operation, name,
                 only_nan ? " must not hold NaN, got one in row " : " must be finite, got NaN or Inf in row ",
                 row % row_count, ", column ", place % col_count, matrix(row / row_count));
  }
}

}  // namespace stun_ext::cuda
