// SPDX-License-Identifier: Apache-2.0
#include "load.hpp"
#include "matmul.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kLanes = 16;  // sums side by side, which a compiler can keep in vectors

/// 32 columns of a row as float32; `values` moves on if packed.
template <class Element>
void spread(const Element*& values, const std::uint32_t* mask, std::int64_t count, float* to) noexcept {
  if (mask == nullptr) {
    for (std::int64_t c = 0; c < kBlockCols; ++c) to[c] = c < count ? to_float(values[c]) : 0.0f;
    values += kBlockCols;
    return;
  }
  for (std::int64_t c = 0; c < kBlockCols; ++c) to[c] = (*mask >> c & 1) != 0 ? to_float(*values++) : 0.0f;
}

template <class Element>
void multiply(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const float* x, std::int64_t tokens,
              float* y, std::int64_t y_stride) noexcept {
  constexpr std::int64_t kTokens = 4;  // multiplied with what has been spread
  const std::int64_t blocks = rows.blocks, x_stride = blocks * kBlockCols;
  const auto* data = static_cast<const Element*>(rows.values);
  for (std::int64_t m = 0; m < tokens; m += kTokens) {
    const std::int64_t count = tokens - m < kTokens ? tokens - m : kTokens;
    for (std::int64_t g = begin; g < end; ++g) {
      float sum[kGroupRows][kTokens][kLanes] = {};
      const Element* packed = rows.masks != nullptr ? data + rows.offsets[g] : nullptr;
      for (std::int64_t b = 0; b < blocks; ++b) {
        for (std::int64_t r = 0; r < kGroupRows; ++r) {
          const std::int64_t row = g * kGroupRows + r;
          if (row >= rows.rows) continue;
          float weights[kBlockCols];
          if (packed != nullptr) {
            spread(packed, rows.masks + (g * blocks + b) * kGroupRows + r, kBlockCols, weights);
          } else {
            const Element* dense = data + row * rows.row_stride + b * kBlockCols;
            spread(dense, nullptr, rows.cols - b * kBlockCols, weights);
          }
          for (std::int64_t t = 0; t < count; ++t) {
            const float* of_token = x + (m + t) * x_stride + b * kBlockCols;
            for (std::int64_t c = 0; c < kBlockCols; ++c) sum[r][t][c % kLanes] += weights[c] * of_token[c];
          }
        }
      }
      for (std::int64_t r = 0; r < kGroupRows; ++r) {
        for (std::int64_t t = 0; t < count; ++t) {
          float total = 0.0f;
          for (const float lane : sum[r][t]) total += lane;
          y[(m + t) * y_stride + (g - begin) * kGroupRows + r] = total;
        }
      }
    }
  }
}

}  // namespace

const MatmulKernels matmul_scalar = {multiply<float>, multiply<Half>, multiply<BFloat16>};

}  // namespace stun_ext::detail
