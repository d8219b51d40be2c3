// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stun_ext::detail {
namespace {

/// Rows of a tile, and its columns of 32 bits.
constexpr std::int64_t kTileSide = 16;

/// Compilers do not know that tile instructions read and write memory.
inline void memory_fence() noexcept { asm volatile("" ::: "memory"); }

/// All eight tiles 16 rows of 64 bytes.
inline void load_tile_config() noexcept {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  memory_fence();
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace stun_ext::detail
