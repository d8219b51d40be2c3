// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/view.hpp"

/// Masks on the GPU: the decisions of stun_ext/mask.hpp, bit for bit, on matrices in device memory.
///
/// Data cannot be checked before work is queued. What the CPU refuses with an exception is counted and located in a
/// MaskStatus, and what it concerns stays as it was: the whole row (Wanda) or the block of m (n:m) that holds NaN or
/// Inf, rows with an illegal count, and every row (Wanda) or the blocks (n:m) that an illegal norm would reach. The
/// rest is pruned all the same. Read the status once the stream has reached it, and call throw_if_illegal.
///
/// Arguments are checked as on the CPU: std::invalid_argument, before anything is queued.
namespace stun_ext::cuda {

/// Matrices of one shape and strides, `stride` elements apart, such as the experts of a layer: [count, rows, cols].
template <class View>
struct Batch {
  Batch(const View& one) noexcept : first(one) {}  // NOLINT(google-explicit-constructor): one matrix is a batch
  Batch(const View& view, std::int64_t matrices, std::int64_t elements) noexcept
      : first(view), count(matrices), stride(elements) {}
  /// Read-only, as MatrixView becomes ConstMatrixView.
  template <class Other, class = std::enable_if_t<std::is_convertible_v<Other, View>>>
  Batch(const Batch<Other>& other) noexcept  // NOLINT(google-explicit-constructor)
      : first(other.first), count(other.count), stride(other.stride) {}

  View first;
  std::int64_t count = 1;
  std::int64_t stride = 0;
};

/// How many weights go in each row: `each`, or, if given, one value in device memory for every row of the batch.
struct PruneCounts {
  std::int64_t each = 0;
  const std::int64_t* per_row = nullptr;  ///< [count · rows], each in [0, cols]
};

/// What operations found: 32 bytes of device memory that the caller sets to zero, with cudaMemsetAsync say. Operations
/// add to it, so that one status may serve a layer, or each matrix have its own.
/// Places count in row-major order through the whole batch, [count, rows, cols]; the lowest is told, as ~place.
struct MaskStatus {
  std::int64_t zeros;           ///< weights that are exactly zero (of either sign) afterwards; for masks nothing
  std::uint64_t not_finite;     ///< ~place of a NaN or Inf (nm_mask: of a NaN); 0: none
  std::uint64_t illegal_norm;   ///< ~(matrix · cols + feature) of a norm that is negative, NaN or Inf; 0: none
  std::uint64_t illegal_count;  ///< ~(matrix · rows + row) of a prune count outside [0, cols]; 0: none
};

/// The most columns of wanda_mask and wanda_prune. A row also needs shared memory, 4 bytes a column for norms and 2 for
/// 16-bit weights: this many fit on Hopper, about 27,000 on an A100; Error says so. The n:m functions have no limit.
inline constexpr std::int64_t kMostColumns = 32768;

/// As stun_ext::wanda_mask. `input_sq_norm`: device memory, [count, cols] without gaps; null means magnitude.
void wanda_mask(const Batch<ConstMatrixView>& weight, const float* input_sq_norm, const PruneCounts& prune_counts,
                const Batch<MaskView>& mask, MaskStatus* status, Stream stream = {});

/// As stun_ext::wanda_prune; each weight is read and written once. Quick where columns lie next to each other; any
/// other strides are slow: copy a transposed matrix instead. What the CPU returns is MaskStatus::zeros (complete only
/// if nothing was illegal).
void wanda_prune(const Batch<MatrixView>& weight, const float* input_sq_norm, const PruneCounts& prune_counts,
                 MaskStatus* status, Stream stream = {});

/// As stun_ext::nm_mask. Quick for m of 2, 4, 8 and 16.
void nm_mask(const Batch<ConstMatrixView>& scores, std::int64_t n, std::int64_t m, const Batch<MaskView>& mask,
             MaskStatus* status, Stream stream = {});

/// As stun_ext::nm_prune; `input_sq_norm` and zeros as in wanda_prune.
void nm_prune(const Batch<MatrixView>& weight, const float* input_sq_norm, std::int64_t n, std::int64_t m,
              MaskStatus* status, Stream stream = {});

/// Throws what the CPU function would have thrown for the data, if anything.
/// @param status  a copy in host memory.
/// @param name      what the caller calls the matrix, e.g. "weight"; [rows, cols] is the shape of one.
/// @param only_nan  Inf is legal: nm_mask.
void throw_if_illegal(const char* operation, const char* name, const MaskStatus& status, std::int64_t rows,
                      std::int64_t cols, bool only_nan = false);

}  // namespace stun_ext::cuda
