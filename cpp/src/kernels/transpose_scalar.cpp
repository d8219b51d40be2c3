// SPDX-License-Identifier: Apache-2.0
#include "transpose.hpp"

namespace stun_ext::detail {
namespace {

template <class Bits>
void transpose(const Bits* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols, Bits* to,
               std::int64_t to_stride) noexcept {
  constexpr std::int64_t kSquare = 32;  // whose lines, on both sides, stay in the first cache
  for (std::int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const std::int64_t r1 = r0 + kSquare < rows ? r0 + kSquare : rows;
    for (std::int64_t c0 = 0; c0 < cols; c0 += kSquare) {
      const std::int64_t c1 = c0 + kSquare < cols ? c0 + kSquare : cols;
      // Along the lines of the matrix, whose strides may be powers of two; those of the block, the short side, are not.
      if (cols >= rows) {
        for (std::int64_t c = c0; c < c1; ++c) {
          for (std::int64_t r = r0; r < r1; ++r) to[r * to_stride + c] = from[c * from_stride + r];
        }
      } else {
        for (std::int64_t r = r0; r < r1; ++r) {
          for (std::int64_t c = c0; c < c1; ++c) to[r * to_stride + c] = from[c * from_stride + r];
        }
      }
    }
  }
}

}  // namespace

const TransposeKernels transpose_scalar = {transpose<std::uint16_t>, transpose<std::uint32_t>};

}  // namespace stun_ext::detail
