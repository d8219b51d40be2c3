// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "amx.hpp"
#include "matmul.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {
namespace {

// Tiles 0 to 3 are sums of 16 rows and 16 tokens: two tiles of rows (4, 5) by two of tokens (6, 7).
constexpr std::int64_t kSide = kTileSide;      ///< rows or tokens of a tile
constexpr std::int64_t kTileRows = 2 * kSide;  ///< rows at once
constexpr std::int64_t kGroups = kTileRows / kGroupRows;
constexpr std::int64_t kPanelBlocks = 4;  ///< 32 rows by 128 columns: 8 KB, which leave the first cache to the rest
constexpr std::int64_t kPairs = 4;        ///< pairs of token tiles for which weights are spread once
constexpr std::int64_t kTile = kSide * kSide;  ///< 32-bit elements
constexpr std::int64_t kLine = 64;
constexpr std::int64_t kBlockPanel = kTileRows * kBlockCols;

STUN_EXT_INLINE void fetch(const void* from) noexcept { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }

/// The streams of 8 groups of packed rows. What the next panel needs is fetched while this one is spread.
class Packed {
 public:
  Packed(const MatmulRows& rows, std::int64_t group, std::int64_t end) noexcept
      : masks_(rows.masks + group * rows.blocks * kGroupRows),
        n_groups_(end - group < kGroups ? end - group : kGroups),
        blocks_(rows.blocks) {
    const auto* values = static_cast<const std::uint16_t*>(rows.values);
    const std::int64_t panels = (blocks_ + kPanelBlocks - 1) / kPanelBlocks;
    for (std::int64_t g = 0; g < n_groups_; ++g) {
      values_[g] = values + rows.offsets[group + g];
      ahead_[g] = (rows.offsets[group + g + 1] - rows.offsets[group + g]) / panels;
      const std::int64_t next = group + g + kGroups;
      next_[g] = next < end ? values + rows.offsets[next] : values_[g];
    }
  }
  void spread(std::int64_t b0, std::int64_t count, std::uint16_t* panel) noexcept {
    const bool is_last = b0 + count == blocks_;
    for (std::int64_t g = 0; g < n_groups_; ++g) {
      const std::uint16_t* from = values_[g];
      const std::uint16_t* start = from;
      const std::uint32_t* mask = masks_ + (g * blocks_ + b0) * kGroupRows;
      const std::int64_t ahead = is_last ? next_[g] - start : ahead_[g];
      std::uint16_t* to = panel + g * kGroupRows * kBlockCols;
      for (std::int64_t b = 0; b < count; ++b, to += kBlockPanel, mask += kGroupRows) {
        fetch(from + ahead);
        fetch(from + ahead + kLine / 2);
        fetch(from + ahead + kLine);
        if ((b & 3) == 0)
          fetch(mask +
                (is_last ? (kGroups - 1) * blocks_ * kGroupRows + count * kGroupRows : kPanelBlocks * kGroupRows));
        STUN_EXT_UNROLL
        for (int r = 0; r < static_cast<int>(kGroupRows); ++r) {
          const __m512i values = _mm512_loadu_si512(from);
          _mm512_store_si512(to + r * kBlockCols, _mm512_maskz_expand_epi16(mask[r], values));
          from += _mm_popcnt_u32(mask[r]);
        }
      }
      values_[g] = from;
    }
  }

 private:
  const std::uint16_t* values_[kGroups];
  const std::uint16_t* next_[kGroups];
  std::int64_t ahead_[kGroups];
  const std::uint32_t* masks_;
  std::int64_t n_groups_, blocks_;
};

/// 32 dense rows, copied as the packed ones are spread.
class Dense {
 public:
  Dense(const MatmulRows& rows, std::int64_t group, std::int64_t end) noexcept
      : rows_(static_cast<const std::uint16_t*>(rows.values) + group * kGroupRows * rows.row_stride),
        stride_(rows.row_stride),
        cols_(rows.cols),
        blocks_(rows.blocks) {
    const std::int64_t last = end * kGroupRows < rows.rows ? end * kGroupRows : rows.rows;
    count_ = last - group * kGroupRows < kTileRows ? last - group * kGroupRows : kTileRows;
    has_next_ = group * kGroupRows + 2 * kTileRows <= last;
  }
  void spread(std::int64_t b0, std::int64_t count, std::uint16_t* panel) noexcept {
    constexpr std::int64_t kAhead = 16;  // blocks; at the end of the rows, in the next ones
    std::int64_t ahead = kAhead * kBlockCols;
    if (b0 + kAhead >= blocks_) ahead = has_next_ ? ahead + kTileRows * stride_ - blocks_ * kBlockCols : 0;
    for (std::int64_t r = 0; r < count_; ++r) {
      const std::uint16_t* from = rows_ + r * stride_ + b0 * kBlockCols;
      for (std::int64_t b = 0; b < count; ++b) {
        const std::int64_t cols = cols_ - (b0 + b) * kBlockCols;
        const __mmask32 present = cols >= kBlockCols ? ~__mmask32{0} : (__mmask32{1} << cols) - 1;
        const __m512i weights = _mm512_maskz_loadu_epi16(present, from + b * kBlockCols);
        fetch(from + b * kBlockCols + ahead);
        _mm512_store_si512(panel + b * kBlockPanel + r * kBlockCols, weights);
      }
    }
  }

 private:
  const std::uint16_t* rows_;
  std::int64_t stride_, cols_, blocks_, count_;
  bool has_next_;
};

/// One or two tiles of tokens, `x_tile` elements apart, times a panel; the sums are in the tiles.
template <int token_tiles>
inline void add_products(const std::uint16_t* panel, std::int64_t count, const std::uint32_t* x,
                         std::int64_t x_tile) noexcept {
  for (std::int64_t b = 0; b < count; ++b) {
    _tile_loadd(4, panel + b * kBlockPanel, 64);
    _tile_loadd(6, x + b * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, panel + b * kBlockPanel + kBlockPanel / 2, 64);
    _tile_dpbf16ps(1, 5, 6);
    if (token_tiles == 2) {
      _tile_loadd(7, x + x_tile + b * kTile, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

inline void load_sums(const float* sums) noexcept {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + kTile, 64);
  _tile_loadd(2, sums + 2 * kTile, 64);
  _tile_loadd(3, sums + 3 * kTile, 64);
}
inline void store_sums(float* sums) noexcept {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTile, 64);
  _tile_stored(2, sums + 2 * kTile, 64);
  _tile_stored(3, sums + 3 * kTile, 64);
}

/// Up to kPairs pairs of token tiles.
template <class Source>
void multiply_tokens(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const std::uint32_t* x,
                     std::int64_t tokens, float* y, std::int64_t y_stride) noexcept {
  alignas(64) std::uint16_t panel[kPanelBlocks * kBlockPanel] = {};
  alignas(64) float sums[kPairs][4 * kTile];
  const std::int64_t blocks = rows.blocks, x_tile = blocks * kTile;
  const std::int64_t tiles = (tokens + kSide - 1) / kSide, pairs = (tiles + 1) / 2;
  for (std::int64_t g = begin; g < end; g += kGroups) {
    Source source(rows, g, end);
    for (std::int64_t b0 = 0; b0 < blocks; b0 += kPanelBlocks) {
      const std::int64_t count = blocks - b0 < kPanelBlocks ? blocks - b0 : kPanelBlocks;
      source.spread(b0, count, panel);
      memory_fence();
      for (std::int64_t p = 0; p < pairs; ++p) {
        if (b0 == 0) {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        } else if (pairs > 1) {
          load_sums(sums[p]);
        }
        const std::uint32_t* of_tokens = x + 2 * p * x_tile + b0 * kTile;
        if (2 * p + 1 < tiles) {
          add_products<2>(panel, count, of_tokens, x_tile);
        } else {
          add_products<1>(panel, count, of_tokens, x_tile);
        }
        if (pairs > 1 || b0 + count == blocks) store_sums(sums[p]);
      }
      memory_fence();
    }
    const std::int64_t n_rows = end - g < kGroups ? (end - g) * kGroupRows : kTileRows;
    for (std::int64_t m = 0; m < tokens; ++m) {
      const float* of_token = sums[m / (2 * kSide)] + m / kSide % 2 * 2 * kTile + m % kSide;
      float* to = y + m * y_stride + (g - begin) * kGroupRows;
      for (std::int64_t r = 0; r < n_rows; ++r) to[r] = of_token[r * kSide];
    }
  }
}

void multiply(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const std::uint32_t* x, std::int64_t tokens,
              float* y, std::int64_t y_stride) noexcept {
  load_tile_config();
  constexpr std::int64_t kTokens = 2 * kPairs * kSide;
  for (std::int64_t m = 0; m < tokens; m += kTokens) {
    const std::int64_t count = tokens - m < kTokens ? tokens - m : kTokens;
    const std::uint32_t* of_tokens = x + m / kSide * rows.blocks * kTile;
    if (rows.masks != nullptr) {
      multiply_tokens<Packed>(rows, begin, end, of_tokens, count, y + m * y_stride, y_stride);
    } else {
      multiply_tokens<Dense>(rows, begin, end, of_tokens, count, y + m * y_stride, y_stride);
    }
  }
  _tile_release();
}

}  // namespace

const Multiply<std::uint32_t> matmul_bf16_amx = multiply;

}  // namespace stun_ext::detail
