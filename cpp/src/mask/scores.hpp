// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "kernels/mask.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Checks the arguments of a Wanda operation but whether W is finite, and returns sqrt(input_sq_norm).
AlignedVector<float> check_wanda(const char* operation, const ConstMatrixView& weight,
                                 const Span<const float>& input_sq_norm);

/// How the rows of a matrix are scored: |row[c]| · norm[c], or |row[c]| if `norm` is null.
struct Scoring {
  DType dtype;
  const float* norm;
  const MaskKernels* kernels;

  static Scoring of(const ConstMatrixView& weight, const AlignedVector<float>& norm,
                    const MaskKernels& kernels) noexcept;

  /// The scores' bits of a row whose elements lie together (see kernels/mask.hpp).
  void keys(const void* row, std::int64_t count, std::int32_t* out) const noexcept;
  /// Their upper halves; returns whether the row is finite.
  bool uppers(const void* row, std::int64_t count, std::int16_t* out) const noexcept;
};

}  // namespace stun_ext::detail
