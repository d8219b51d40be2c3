// SPDX-License-Identifier: Apache-2.0
#include "distance/distance_panel.hpp"

#include <algorithm>

#include "dispatch.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

const RowKernels& row_kernels(const DistanceKernels& kernels, DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return kernels.f32;
    case DType::bf16:
      return kernels.bf16;
    case DType::f16:
      return kernels.f16;
    case DType::f64:
    case DType::i64:
      break;
  }
  return kernels.f64;
}

constexpr std::int64_t kMostInGroup = 8;

}  // namespace

const DistanceKernels& distance_kernels() { return STUN_EXT_KERNELS(distance); }

RowSource::RowSource(const DistanceKernels& kernels, const ConstMatrixView& rows) noexcept
    : all_kernels_(kernels), rows_(rows), in_place_(rows.col_stride == 1 && rows.dtype != DType::i64) {
  kernels_ = in_place_ ? &row_kernels(kernels, rows.dtype) : &kernels.f64;
}

const void* RowSource::block(std::int64_t row, std::int64_t col, std::int64_t cols, double* buffer) const noexcept {
  if (in_place_) {
    return dispatch(rows_, [&](const auto* data) -> const void* { return data + row * rows_.row_stride + col; });
  }
  load_block(rows_, row, 1, col, cols, buffer, cols);
  return buffer;
}

namespace {

std::int64_t depth_of(std::int64_t cols) noexcept { return (std::min(kBlockCols, cols) + kLanes - 1) / kLanes; }

// Three more lines, or with some numbers of rows all lanes would share the same cache sets.
std::int64_t lane_stride(std::int64_t padded_rows, std::int64_t cols) noexcept {
  return padded_rows * depth_of(cols) + 24;
}

std::int64_t groups_of(const DistanceKernels& kernels, std::int64_t count) noexcept {
  return (count + kernels.group - 1) / kernels.group;
}

std::int64_t blocks_of(std::int64_t cols) noexcept { return (cols + kBlockCols - 1) / kBlockCols; }

}  // namespace

std::int64_t DistancePanel::size(const DistanceKernels& kernels, std::int64_t count, std::int64_t cols) noexcept {
  return blocks_of(cols) * kLanes * lane_stride(groups_of(kernels, count) * kernels.group, cols);
}

DistancePanel::DistancePanel(const RowSource& source, std::int64_t count, std::int64_t col, std::int64_t cols,
                             double* memory) noexcept
    : kernels_(&source.all_kernels()),
      has_exact_products_(source.rows().dtype != DType::f64 && source.rows().dtype != DType::i64),
      rows_(count),
      groups_(groups_of(*kernels_, count)),
      col_(col),
      cols_(cols),
      blocks_(blocks_of(cols)),
      lane_stride_(lane_stride(groups_ * kernels_->group, cols)),
      memory_(memory) {}

std::int64_t DistancePanel::depth(std::int64_t block) const noexcept { return depth_of(cols_ - block * kBlockCols); }

void DistancePanel::pack(const RowSource& source, std::int64_t first, const std::uint32_t* index,
                         std::int64_t group) noexcept {
  const std::int64_t begin = group * kernels_->group;
  const std::int64_t count = std::min(kernels_->group, rows_ - begin);
  double buffer[kMostInGroup][kBlockCols];
  for (std::int64_t block = 0; block < blocks_; ++block) {
    const std::int64_t col = col_ + block * kBlockCols;
    const std::int64_t cols = std::min(kBlockCols, col_ + cols_ - col);
    const void* rows[kMostInGroup];
    if (index == nullptr && !source.in_place()) {  // together: they may be columns in memory
      load_block(source.rows(), first + begin, count, col, cols, buffer[0], kBlockCols);
      for (std::int64_t r = 0; r < count; ++r) rows[r] = buffer[r];
    } else {
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t row = index == nullptr ? first + begin + r : index[begin + r];
        rows[r] = source.block(row, col, cols, buffer[r]);
      }
    }
    source.kernels().pack(rows, count, cols, part(block, 0) + begin * depth(block), lane_stride_);
  }
}

void DistancePanel::sum_block(Term term, std::int64_t block, const DistancePanel& a, GroupRange groups_a,
                              const DistancePanel& b, GroupRange groups_b, bool is_upper, double* out,
                              std::int64_t stride) noexcept {
  const DistanceKernels& kernels = *a.kernels_;
  auto* const of_products = a.has_exact_products_ ? kernels.exact_products : kernels.products;
  auto* const add = term == Term::difference ? kernels.differences : of_products;
  const std::int64_t size = kernels.group;
  const std::int64_t depth = a.depth(block);
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    const double* part_a = a.part(block, lane);
    const double* part_b = b.part(block, lane);
    // A few groups of b stay in the first cache while those of a go by.
    for (std::int64_t j0 = groups_b.begin; j0 < groups_b.end; j0 += kernels.groups_b) {
      const std::int64_t j1 = std::min(j0 + kernels.groups_b, groups_b.end);
      const std::int64_t last = is_upper ? std::min(groups_a.end, j1) : groups_a.end;
      for (std::int64_t i = groups_a.begin; i < last; ++i) {
        const std::int64_t j = is_upper ? std::max(i, j0) : j0;
        add(part_a + i * size * depth, part_b + j * size * depth, j1 - j, depth, lane == 0,
            out + (i - groups_a.begin) * size * stride + (j - groups_b.begin) * size, stride);
      }
    }
  }
}

}  // namespace stun_ext::detail
