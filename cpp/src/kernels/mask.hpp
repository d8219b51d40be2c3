// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

// Wanda scores and masks of one row whose elements lie together.
//
//   scores = np.abs(row.astype(np.float32)) * norm          # or np.abs(row) where `norm` is null
//   order = np.argsort(scores, kind="stable")               # the first `prune_count` columns go
//
// float32 scores are not negative, so their bits order as they do: kernels work on the bits as integers, a *key*. The
// upper 16 bits of all keys of a row are kept in memory (28 KB for 14,336 columns: first cache) and searched with
// counting passes; the lower 16 bits are computed only for the few columns that share the upper half of the cut
// (row_cuts.hpp). Every kernel is exact, so all instruction sets decide alike.
//
// Measured on one core of a Xeon (family 6, model 207), bfloat16 4096 x 14336 at 50%, pruned in place: AVX-512 2.0,
// AVX2 1.8, scalar 0.9 G weights/s (benchmarks/results/ops_mask.md).

/// Rows of upper halves are padded to a multiple of this with kUpperPadding.
constexpr std::int64_t kUpperMultiple = 64;
constexpr std::int16_t kUpperPadding = -32768;

struct MaskKernels {
  /// Keys of |row[c]| · norm[c]; `norm` null means |row[c]|. bfloat16 and float16 come as bits.
  void (*scores_f32)(const float* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;
  void (*scores_f16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;
  void (*scores_bf16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;

  /// Their upper halves, key >> 16. Returns whether the row is finite; else what is written means nothing.
  bool (*uppers_f32)(const float* row, const float* norm, std::int64_t count, std::int16_t* uppers) noexcept;
  bool (*uppers_f16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int16_t* uppers) noexcept;
  bool (*uppers_bf16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int16_t* uppers) noexcept;

  /// How many values are above the limit; `count` is a multiple of kUpperMultiple.
  std::int64_t (*count_above)(const std::int16_t* values, std::int64_t count, std::int16_t limit) noexcept;

  /// Ascending columns of the values that equal `value`; returns how many. `count` as in count_above.
  std::int64_t (*find_equal)(const std::int16_t* values, std::int64_t count, std::int16_t value,
                             std::uint32_t* columns) noexcept;

  /// mask[c] = uppers[c] >= limit, as 1 and 0; limit >= 0.
  void (*write_mask)(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, std::uint8_t* mask) noexcept;

  /// Zeroes (+0) the elements, of 2 or 4 bytes, with uppers[c] < limit; returns how many of all are ±0 afterwards.
  std::int64_t (*prune_u16)(const std::int16_t* uppers, std::int64_t count, std::int16_t limit,
                            std::uint16_t* row) noexcept;
  std::int64_t (*prune_u32)(const std::int16_t* uppers, std::int64_t count, std::int16_t limit,
                            std::uint32_t* row) noexcept;

  /// The same with mask[c] == 0.
  std::int64_t (*apply_u16)(const std::uint8_t* mask, std::int64_t count, std::uint16_t* row) noexcept;
  std::int64_t (*apply_u32)(const std::uint8_t* mask, std::int64_t count, std::uint32_t* row) noexcept;
};

extern const MaskKernels mask_scalar;  // the others leave the end of a row, less than two vectors, to it
extern const MaskKernels mask_avx2;
extern const MaskKernels mask_avx512;
extern const MaskKernels mask_neon;

}  // namespace stun_ext::detail
