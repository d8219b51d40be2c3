// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "stun_ext/sparse.hpp"

namespace stun_ext::detail {

constexpr std::int64_t packed_groups(std::int64_t rows) noexcept { return (rows + kPackedRows - 1) / kPackedRows; }
constexpr std::int64_t packed_blocks(std::int64_t cols) noexcept { return (cols + kPackedCols - 1) / kPackedCols; }

/// Groups of rows for one task, a multiple of `multiple`: a few tasks for each thread, each of them worth handing out.
std::int64_t packed_groups_per_task(std::int64_t rows, std::int64_t cols, std::int64_t multiple,
                                    const Executor& executor) noexcept;

}  // namespace stun_ext::detail
