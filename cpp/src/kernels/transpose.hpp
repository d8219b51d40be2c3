// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

// Copies of transposed matrices, 8 × 8 (16 bits) or 4 × 4 (32 bits) elements at a time in registers. Copied one by one,
// transposed weights were masked at a fifth of the rate of straight ones; so, at about half
// (benchmarks/results/ops_mask.md).

struct TransposeKernels {
  /// to[r * to_stride + c] = from[c * from_stride + r] for r in [0, rows), c in [0, cols). What is to be read or
  /// written next is asked for ahead of its time, for its lines lie far apart.
  void (*transpose_u16)(const std::uint16_t* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols,
                        std::uint16_t* to, std::int64_t to_stride) noexcept;
  void (*transpose_u32)(const std::uint32_t* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols,
                        std::uint32_t* to, std::int64_t to_stride) noexcept;
};

extern const TransposeKernels transpose_scalar;  // the others leave it what is less than a block
extern const TransposeKernels transpose_avx2;
extern const TransposeKernels transpose_avx512;
extern const TransposeKernels transpose_neon;

}  // namespace stun_ext::detail
