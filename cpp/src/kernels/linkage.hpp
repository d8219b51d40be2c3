// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// Columns that `mirror` writes at once: a cache line of doubles. Arrays that kernels write have room for a multiple.
constexpr std::int64_t kMirrored = 8;

/// Lowest value and the first place where it is; +Inf if there is none below that.
struct Minimum {
  double value;
  std::int64_t place;
};

/// Two clusters x and y that merge, and their distances to the clusters i of places [0, count), see Recurrence. `count`
/// is a multiple of kMirrored.
struct MergedRow {
  const double* d_xi;
  const double* d_yi;
  const double* size_i;
  const double* penalty;  ///< +Inf for places that hold no cluster, otherwise 0
  std::int64_t count;
  double d_xy, size_x, size_y;
  double* out;  ///< [count], may be d_xi; any value where the penalty is +Inf
};

/// Every instruction set gives the same bits.
struct LinkageKernels {
  /// Distances of the merged cluster, and the lowest of them.
  using Update = Minimum (*)(const MergedRow& row) noexcept;
  Update single, complete, average, ward, centroid;

  /// The minimum of values[k] + penalty[k].
  Minimum (*lowest_of_row)(const double* values, const double* penalty, std::int64_t count) noexcept;
  Minimum (*lowest)(const double* values, std::int64_t count) noexcept;

  /// The minimum; `is_within` becomes false if a magnitude is above `limit`, or NaN.
  Minimum (*lowest_within)(const double* values, std::int64_t count, double limit, bool& is_within) noexcept;

  /// The places k, ascending, where values[k] is at most the higher of heights[k] and `height`; returns how many.
  std::int64_t (*not_above)(const double* values, const double* heights, std::int64_t count, double height,
                            std::int32_t* places) noexcept;

  /// The first place in [begin, end) that holds `value`, or `end`.
  std::int64_t (*find)(const double* values, std::int64_t begin, std::int64_t end, double value) noexcept;

  /// near[k] becomes the lower of near[k] and row[k]; the minimum of near[k] + penalty[k].
  Minimum (*approach)(const double* row, const double* penalty, std::int64_t count, double* near) noexcept;

  /// Copies, and says whether all magnitudes are at most `limit` (false for NaN).
  bool (*copy_within)(const double* from, std::int64_t count, double limit, double* to) noexcept;

  /// to[i][column + w] = from[w][i] for i in [begin, end), multiples of kMirrored, and w below kMirrored. Rows are
  /// aligned to 64 bytes, and `column` is a multiple of kMirrored.
  void (*mirror)(const double* const* from, std::int64_t begin, std::int64_t end, std::int64_t column,
                 double* const* to) noexcept;
  /// The same past the caches, for what they cannot hold.
  decltype(mirror) mirror_streaming;

  /// Moves the columns whose bits are set to the front: bit k % 8 of kept[k / 8]. `count` is a multiple of 8.
  void (*squeeze)(double* row, const std::uint8_t* kept, std::int64_t count) noexcept;
};

extern const LinkageKernels linkage_scalar;
#if defined(__x86_64__)
extern const LinkageKernels linkage_avx2;
extern const LinkageKernels linkage_avx512;
#elif defined(__aarch64__)
extern const LinkageKernels linkage_neon;
#endif

}  // namespace stun_ext::detail
