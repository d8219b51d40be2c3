// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

// n:m masks: of every m consecutive scores the n highest stay, and of equal ones the lowest columns go.
//
//   order = np.argsort(scores.reshape(-1, m), axis=1, kind="stable")[:, m - n:]     # what stays
//
// A score stays if fewer than n others of its block come before it: the higher ones, and equal ones to its right. For
// the m of hardware formats all blocks of a vector are compared with themselves rotated, m - 1 times.

struct NmPattern {
  std::int64_t n, m;  ///< 1 <= n < m
};

struct NmKernels {
  /// Scores are bits of a floating-point format of that size (sign and magnitude); -0 equals +0. mask[c] becomes 1 or
  /// 0. `count` is a multiple of m; `order` has room for m indices. Returns whether the magnitude of any score is above
  /// `limit`: the one of infinity finds NaN, with which the mask means nothing.
  bool (*keep_highest_u16)(const std::uint16_t* scores, std::int64_t count, NmPattern pattern, std::uint16_t limit,
                           std::uint8_t* mask, std::int64_t* order) noexcept;
  bool (*keep_highest_u32)(const std::uint32_t* scores, std::int64_t count, NmPattern pattern, std::uint32_t limit,
                           std::uint8_t* mask, std::int64_t* order) noexcept;
};

extern const NmKernels nm_scalar;  // the others leave it the end of a row and every m that is not 2, 4, 8 or 16
extern const NmKernels nm_avx2;
extern const NmKernels nm_avx512;
extern const NmKernels nm_neon;

}  // namespace stun_ext::detail
