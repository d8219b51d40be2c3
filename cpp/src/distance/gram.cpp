// SPDX-License-Identifier: Apache-2.0
#include "distance/gram.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "check.hpp"
#include "dispatch.hpp"
#include "load.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kSampleRows = 1024;
constexpr std::int64_t kChunk = kGramDepth;
// Columns: tiles take 32 at a time, and rows of few are not what takes long; what they flush to 0 adds up beyond many.
constexpr std::int64_t kTilesFrom = 128, kTilesTo = std::int64_t{1} << 24;

std::int64_t groups_of(std::int64_t rows, std::int64_t group) noexcept { return (rows + group - 1) / group; }

std::int64_t group_of(const GramKernels& kernels, GramPanel::Side side) noexcept {
  return side == GramPanel::Side::a ? kernels.a_rows : kernels.b_rows;
}

/// Columns as they are packed: kernels may take several at once.
std::int64_t packed_cols(const GramKernels& kernels, std::int64_t cols) noexcept {
  return groups_of(cols, kernels.depth_multiple) * kernels.depth_multiple;
}

double pack_floats(const double* values, std::int64_t depth, std::int64_t lane, std::int64_t group,
                   float* to) noexcept {
  double squares = 0.0;
  for (std::int64_t k = 0; k < depth; ++k) {
    const auto rounded = static_cast<float>(values[k]);
    const double off = values[k] - static_cast<double>(rounded);
    squares += off * off;
    to[k * group + lane] = rounded;
  }
  return squares;
}

}  // namespace

const GramKernels& gram_kernels([[maybe_unused]] std::int64_t cols) {
#if defined(__x86_64__)
  if (cols >= kTilesFrom && cols <= kTilesTo && isa() == Isa::avx512 && features().avx512vbmi2 &&
      features().avx512bf16 && can_use_tiles())
    return gram_amx;
#endif
  return STUN_EXT_KERNELS(gram);
}

GramFrame GramFrame::of(const ConstMatrixView& rows, Executor& executor) {
  GramFrame frame;
  const auto cols = static_cast<std::size_t>(rows.cols);
  frame.center.assign(cols, 0.0);
  const std::int64_t step = std::max<std::int64_t>(1, rows.rows / kSampleRows);
  const std::int64_t samples = (rows.rows + step - 1) / step;
  std::vector<double> row(cols);
  for (std::int64_t r = 0; r < rows.rows; r += step) {
    load_block(rows, r, 1, 0, rows.cols, row.data(), rows.cols);
    for (std::size_t c = 0; c < cols; ++c) frame.center[c] += row[c] / static_cast<double>(samples);
  }
  // Of all rows, so that no value leaves float32's range.
  std::mutex mutex;
  double largest = 0.0;
  auto task = [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> values(cols);
    double most = 0.0;
    for (std::int64_t r = begin; r < end; ++r) {
      load_block(rows, r, 1, 0, rows.cols, values.data(), rows.cols);
      for (std::size_t c = 0; c < cols; ++c) most = std::max(most, std::abs(values[c] - frame.center[c]));
    }
    const std::lock_guard<std::mutex> lock(mutex);
    largest = std::max(largest, most);
  };
  executor.parallel_for(rows.rows, rows_per_task(rows.cols), task);
  frame.radius = largest * std::sqrt(static_cast<double>(rows.cols));
  constexpr int kMost = 1000;  // of float64's subnormals the inverse would be infinite
  if (frame.radius > 0.0 && std::isfinite(frame.radius)) {
    frame.scale = std::ldexp(1.0, std::min(-std::ilogb(frame.radius) - 1, kMost));
  }
  return frame;
}

GramPanel::GramPanel(Side side, std::int64_t max_rows, std::int64_t cols, const GramKernels& kernels)
    : side_(side),
      cols_(cols),
      blocks_((cols + kGramDepth - 1) / kGramDepth),
      kernels_(&kernels),
      packed_(static_cast<std::size_t>(groups_of(max_rows, group_rows()) * group_rows() * packed_cols(kernels, cols))) {
  squared_norm_.reserve(static_cast<std::size_t>(max_rows));
  norm_.reserve(static_cast<std::size_t>(max_rows));
  error_.reserve(static_cast<std::size_t>(max_rows));
  prefix_.reserve(static_cast<std::size_t>(max_rows * blocks_));
}

std::int64_t GramPanel::group_rows() const noexcept { return group_of(*kernels_, side_); }

double GramPanel::bytes(std::int64_t max_rows, std::int64_t cols) noexcept {
  // What tiles need, so that plans are alike on all processors.
  constexpr std::int64_t kMultiple = 32;
  const std::int64_t packed = cols < kTilesFrom ? cols : groups_of(cols, kMultiple) * kMultiple;
  return 4.0 * static_cast<double>(max_rows + kGramPadding) * static_cast<double>(packed) +
         (24.0 + 8.0 * static_cast<double>((cols + kGramDepth - 1) / kGramDepth)) * static_cast<double>(max_rows);
}

// x̂ is x rounded to float32, or as the kernels have it. The error ‖x − x̂‖ is computed from the values themselves; its
// own rounding, and that of x − center in float64, are covered by the factor and by 1e-15 of the norm.
void GramPanel::pack(const ConstMatrixView& rows, const std::uint32_t* index, std::int64_t count,
                     const GramFrame& frame) {
  const std::int64_t group = group_of(*kernels_, side_);
  const std::int64_t groups = groups_of(count, group);
  const GramKernels::Pack pack_row = side_ == Side::a ? kernels_->pack_a : kernels_->pack_b;
  count_ = count;
  squared_norm_.assign(static_cast<std::size_t>(count), 0.0);
  error_.assign(static_cast<std::size_t>(count), 0.0);
  norm_.assign(static_cast<std::size_t>(count), 0.0);
  prefix_.resize(static_cast<std::size_t>(count * blocks_));
  double values[kChunk];
  for (std::int64_t k0 = 0; k0 < cols_; k0 += kChunk) {
    const std::int64_t depth = std::min(kChunk, cols_ - k0), packed_depth = packed_cols(*kernels_, depth);
    const double* center = frame.center.data() + k0;
    for (std::int64_t r = 0; r < groups * group; ++r) {
      // Blocks of columns are of the same size but for the last one.
      float* to = packed_.data() + k0 * groups * group + r / group * group * packed_depth;
      double squared = 0.0;
      if (r < count) {
        load_block(rows, index[r], 1, k0, depth, values, kChunk);
        for (std::int64_t k = 0; k < depth; ++k) {
          values[k] = (values[k] - center[k]) * frame.scale;
          squared += values[k] * values[k];
        }
        std::fill(values + depth, values + packed_depth, 0.0);
      } else {
        std::fill_n(values, packed_depth, 0.0);
      }
      const double error = pack_row != nullptr ? pack_row(values, packed_depth, r % group, to)
                                               : pack_floats(values, packed_depth, r % group, group, to);
      if (r >= count) continue;
      squared_norm_[static_cast<std::size_t>(r)] += squared;
      prefix_[static_cast<std::size_t>(r * blocks_ + k0 / kChunk)] = squared_norm_[static_cast<std::size_t>(r)];
      error_[static_cast<std::size_t>(r)] += error;
    }
  }
  for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
    const double norm = std::sqrt(squared_norm_[r]) * (1.0 + 1e-9);
    error_[r] = std::sqrt(error_[r]) * (1.0 + 1e-9) + 1e-15 * norm + 1e-35;
    norm_[r] = norm + error_[r];
  }
}

// Unless the kernels have a bound of their own: each block of kGramDepth columns is summed by itself and then added to
// those before it. A term passes through at most kGramDepth + blocks additions (and one multiplication where it is not
// fused), each off by at most 2^-24 of what it makes; (1 + 2^-24)^k − 1 <= 1.01 k 2^-24 for the k at hand, and the
// terms' magnitudes sum to at most ‖x̂‖·‖ŷ‖. Twice that is allowed for.
double GramPanel::gamma() const noexcept {
  if (kernels_->gamma != nullptr) return kernels_->gamma(cols_);
  const auto depth = static_cast<double>(std::min(cols_, kGramDepth)), blocks = static_cast<double>(blocks_);
  return 2.0 * 1.01 * (depth + blocks + 2.0) * 0x1p-24;
}

void gram(const GramPanel& a, const GramPanel& b, float* out, std::int64_t stride) {
  gram(a, b, 0, a.blocks(), nullptr, out, stride);
}

void gram(const GramPanel& a, const GramPanel& b, std::int64_t first_block, std::int64_t last_block,
          const unsigned char* wanted, float* out, std::int64_t stride) {
  const GramKernels& kernels = *a.kernels_;
  const std::int64_t groups_a = groups_of(a.count_, kernels.a_rows), groups_b = groups_of(b.count_, kernels.b_rows);
  if (kernels.enter != nullptr) kernels.enter();
  for (std::int64_t block = first_block; block < last_block; ++block) {
    const std::int64_t k0 = block * kGramDepth;
    const std::int64_t depth = packed_cols(kernels, std::min(kGramDepth, a.cols_ - k0));
    const float* block_a = a.packed_.data() + k0 * groups_a * kernels.a_rows;
    const float* block_b = b.packed_.data() + k0 * groups_b * kernels.b_rows;
    for (std::int64_t j = 0; j < groups_b; ++j) {
      for (std::int64_t i = 0; i < groups_a; ++i) {
        if (wanted != nullptr && wanted[i * groups_b + j] == 0) continue;
        kernels.multiply(block_a + i * kernels.a_rows * depth, block_b + j * kernels.b_rows * depth, depth,
                         out + i * kernels.a_rows * stride + j * kernels.b_rows, stride, k0 > 0);
      }
    }
  }
  if (kernels.leave != nullptr) kernels.leave();
}

}  // namespace stun_ext::detail
