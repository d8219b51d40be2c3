// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "amx.hpp"
#include "gram.hpp"

namespace stun_ext::detail {
namespace {

// A row is x = h + l + what is lost, h and l bfloat16: x·y is about h·h' + h·l' + l·h', each product of 32 columns an
// instruction for 16 rows by 16. l·l' is left out: |l| <= 2^-8 |x|, so that it is at most 2^-16 ‖x‖·‖y‖.
//
// A group has 32 rows. For 32 columns it holds tiles of 16 rows each: h of the first 16 rows, h of the others, l, l.
constexpr std::int64_t kRows = 32;
constexpr std::int64_t kDepth = 32;                 ///< columns of a tile
constexpr std::int64_t kTile = kTileSide * kDepth;  ///< elements
constexpr std::int64_t kStep = 2 * 2 * kTile;       ///< elements of a group for kDepth columns
constexpr std::int64_t kMost = kGramDepth;

/// To the nearest bfloat16; what the tiles would read as 0 becomes 0.
inline std::uint32_t round_bits(float value) noexcept {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return (rounded & 0x7f80u) != 0 ? rounded : 0;
}
inline float value_of(std::uint32_t bits) noexcept {
  bits <<= 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

/// Both parts of each value; returns the sum of squares of the rest.
double split(const double* values, std::int64_t depth, std::uint32_t* high, std::uint32_t* low) noexcept {
  double squares = 0.0;
  for (std::int64_t k = 0; k < depth; ++k) {
    const auto value = static_cast<float>(values[k]);
    high[k] = round_bits(value);
    const float rest = value - value_of(high[k]);  // exact
    low[k] = round_bits(rest);
    const double off = values[k] - static_cast<double>(value_of(high[k])) - static_cast<double>(value_of(low[k]));
    squares += off * off;
  }
  return squares;
}

/// Rows of a tile are rows, columns side by side.
double pack_a(const double* values, std::int64_t depth, std::int64_t lane, float* group) noexcept {
  std::uint32_t high[kMost], low[kMost];
  const double squares = split(values, depth, high, low);
  char* to = reinterpret_cast<char*>(group) + 2 * (lane / kTileSide * kTile + lane % kTileSide * kDepth);
  for (std::int64_t k0 = 0; k0 < depth; k0 += kDepth, to += 2 * kStep) {
    std::uint16_t row[2][kDepth];
    for (std::int64_t k = 0; k < kDepth; ++k) {
      row[0][k] = static_cast<std::uint16_t>(high[k0 + k]);
      row[1][k] = static_cast<std::uint16_t>(low[k0 + k]);
    }
    __builtin_memcpy(to, row[0], sizeof row[0]);
    __builtin_memcpy(to + 2 * 2 * kTile, row[1], sizeof row[1]);
  }
  return squares;
}

/// Columns of a tile are rows, and its rows pairs of columns.
double pack_b(const double* values, std::int64_t depth, std::int64_t lane, float* group) noexcept {
  std::uint32_t high[kMost], low[kMost];
  const double squares = split(values, depth, high, low);
  char* to = reinterpret_cast<char*>(group) + 2 * (lane / kTileSide * kTile) + 4 * (lane % kTileSide);
  for (std::int64_t k0 = 0; k0 < depth; k0 += kDepth, to += 2 * kStep) {
    for (std::int64_t k = 0; k < kDepth; k += 2) {
      const std::uint32_t of_high = high[k0 + k] | high[k0 + k + 1] << 16;
      const std::uint32_t of_low = low[k0 + k] | low[k0 + k + 1] << 16;
      __builtin_memcpy(to + k / 2 * 64, &of_high, 4);
      __builtin_memcpy(to + k / 2 * 64 + 2 * 2 * kTile, &of_low, 4);
    }
  }
  return squares;
}

inline void load_products(float* out, std::int64_t stride) noexcept {
  const std::int64_t bytes = 4 * stride;
  _tile_loadd(0, out, bytes);
  _tile_loadd(1, out + kTileSide, bytes);
  _tile_loadd(2, out + kTileSide * stride, bytes);
  _tile_loadd(3, out + kTileSide * stride + kTileSide, bytes);
}

inline void add_products() noexcept {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

void multiply(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
              bool accumulate) noexcept {
  memory_fence();
  if (accumulate) {
    load_products(out, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const char* of_a = reinterpret_cast<const char*>(a);
  const char* of_b = reinterpret_cast<const char*>(b);
  constexpr std::int64_t kBytes = 2 * kTile, kLow = 2 * kBytes;
  for (std::int64_t k = 0; k < depth; k += kDepth, of_a += 2 * kStep, of_b += 2 * kStep) {
    _tile_loadd(4, of_a + kLow, 64);
    _tile_loadd(5, of_a + kLow + kBytes, 64);
    _tile_loadd(6, of_b, 64);
    _tile_loadd(7, of_b + kBytes, 64);
    add_products();
    _tile_loadd(4, of_a, 64);
    _tile_loadd(5, of_a + kBytes, 64);
    add_products();
    _tile_loadd(6, of_b + kLow, 64);
    _tile_loadd(7, of_b + kLow + kBytes, 64);
    add_products();
  }
  const std::int64_t bytes = 4 * stride;
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + kTileSide, bytes);
  _tile_stored(2, out + kTileSide * stride, bytes);
  _tile_stored(3, out + kTileSide * stride + kTileSide, bytes);
  memory_fence();
}

void enter() noexcept { load_tile_config(); }
void leave() noexcept { _tile_release(); }

// What a product is off by beside x̂ = h + l (GramPanel::error), over ‖x‖·‖y‖:
//
// - l·l' is left out. |l| <= 2^-8 |x|, since l is the rounding of what is at most half a unit of h: 2^-16.
// - Sums. An instruction adds 16 products of even columns one after the other, 16 of odd ones, these two sums to each
//   other and then to the tile, each rounded to nearest (products are not rounded: Intel's manual, TDPBF16PS). The tile
//   keeps the sum of all columns, of later blocks as well, so that the first term passes through 17 roundings and one
//   for each instruction, of which there are three for 32 columns: k u / (1 − k u) with u = 2^-24. The magnitudes of
//   the terms sum to |h||h'| + |h||l'| + |l||h'| <= (1 + 2^-8)(1 + 3·2^-8) |x||y|, less than 1.016.
// - Flushing. Inputs below 2^-126 are none: packing drops them, and counts what it dropped. A sum below 2^-126 becomes
//   0: with fewer than 4 additions for each of 2^24 columns (gram_kernels) that is less than the 1e-30 of gram().
double gamma(std::int64_t cols) noexcept {
  const double roundings = 18.0 + 3.0 * static_cast<double>((cols + kDepth - 1) / kDepth);
  const double of_sums = roundings * 0x1p-24 / (1.0 - roundings * 0x1p-24);
  return 0x1p-16 * (1.0 + 0x1p-20) + 1.016 * of_sums;
}

}  // namespace

const GramKernels gram_amx = {kRows, kRows, multiply, kDepth, pack_a, pack_b, gamma, enter, leave};

}  // namespace stun_ext::detail
