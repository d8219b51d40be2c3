// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// Scores are float32, not negative, so their bits order as they do; kernels work on the bits as int32 keys.

/// Buckets of the first round of the selection: sign (always 0), exponent and three bits of the mantissa.
constexpr int kCutBuckets = 2048;
constexpr int kCutHistograms = 4;

/// What selecting the lowest keys of a row needs to keep; candidates holds as many keys as the row.
struct CutWorkspace {
  std::uint32_t* histogram;  ///< [kCutHistograms, kCutBuckets]
  std::int32_t* candidates;
};

/// The lowest `count_pruned` keys of a row are those below `key`, and those equal to it before column `tie_end`.
struct Cut {
  std::int32_t key;
  std::int64_t tie_end;
};

struct MaskKernels {
  /// |row[c]| · norm[c] for contiguous elements; `norm` null means |row[c]|.
  void (*scores_f32)(const float* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;
  void (*scores_f16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;
  void (*scores_bf16)(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept;

  /// Exact selection by radix, `count_pruned` in [1, count].
  Cut (*find_cut)(const std::int32_t* keys, std::int64_t count, std::int64_t count_pruned,
                  CutWorkspace workspace) noexcept;

  /// Writes 1 for kept and 0 for pruned.
  void (*write_mask)(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint8_t* mask) noexcept;

  /// Zeroes what is pruned in contiguous elements of 2 or 4 bytes; returns how many elements are ±0 afterwards.
  std::int64_t (*prune_u16)(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint16_t* row) noexcept;
  std::int64_t (*prune_u32)(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint32_t* row) noexcept;

  /// Of m scores the n highest get 1 and the others 0; of equal ones the lowest columns get 0.
  /// @param order  room for m indices, used when m is large.
  void (*keep_highest)(const float* scores, std::int64_t n, std::int64_t m, std::uint8_t* mask,
                       std::int64_t* order) noexcept;
};

extern const MaskKernels mask_scalar;
inline constexpr const MaskKernels& mask_avx2 = mask_scalar;
inline constexpr const MaskKernels& mask_avx512 = mask_scalar;

}  // namespace stun_ext::detail
