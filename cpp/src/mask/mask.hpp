// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/mask.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/mask.hpp"

namespace stun_ext::detail {

void check_mask(const char* operation, const MaskView& mask, std::int64_t rows, std::int64_t cols);

/// Zeroes in a row of contiguous weights those whose mask is 0; returns how many are ±0 afterwards.
std::int64_t apply_row(const MaskKernels& kernels, DType dtype, const std::uint8_t* mask, std::int64_t cols,
                       void* row) noexcept;

}  // namespace stun_ext::detail
