// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "matmul.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {

/// The kernels for an instruction set that says how to spread and multiply. L is a class of the including file's own
/// (in an unnamed namespace), so nothing here is shared between the files:
///   Stored, X, Spread        elements of the weights, of x, and of weights spread into cache
///   kVectors                 vectors of 32 columns
///   kTokens                  tokens at once; 4 · kTokens sums are to stay in registers
///   expand(mask, from, v), load(from, v)   32 columns, packed or not
///   store(v, to), load_spread(to)          all vectors of a block, and one of them
///   Sum, zero(), dot(sum, v, x), total(sum)
template <class L>
struct MatmulLanes {
  using Stored = typename L::Stored;
  using X = typename L::X;
  using Spread = typename L::Spread;
  using Vector = typename L::Vector;
  using Sum = typename L::Sum;
  static constexpr int kVectors = L::kVectors;
  static constexpr int kRows = static_cast<int>(kGroupRows);
  static constexpr std::int64_t kLane = kBlockCols / kVectors;  ///< columns of a vector
  static constexpr std::int64_t kLine = 64;

  /// Bytes ahead at which lines are fetched into the second cache, and then into the first: alone the processor stops
  /// at the end of a page, and either alone is a tenth slower (benchmarks/results/ops_sparse.md).
  static constexpr std::int64_t kFar = 8192, kNear = 1024;

  STUN_EXT_INLINE static void fetch_at(const void* from, std::int64_t far, std::int64_t near) noexcept {
    _mm_prefetch(static_cast<const char*>(from) + far, _MM_HINT_T1);
    _mm_prefetch(static_cast<const char*>(from) + near, _MM_HINT_T0);
  }

  /// The stream of a group of packed rows.
  class Packed {
   public:
    static Packed at(const MatmulRows& rows, std::int64_t group) noexcept {
      Packed source;
      source.values_ = static_cast<const Stored*>(rows.values) + rows.offsets[group];
      source.masks_ = rows.masks + group * rows.blocks * kGroupRows;
      return source;
    }
    /// For the 4 rows of a block: half of the weights, and a line more, so that no line is left out by denser blocks.
    STUN_EXT_INLINE void fetch(std::int64_t b) const noexcept {
      constexpr int kLines = static_cast<int>(sizeof(Stored)) + 1;
      STUN_EXT_UNROLL
      for (int i = 0; i < kLines; ++i) fetch_at(values_, kFar + i * kLine, kNear + i * kLine);
      if ((b & 3) == 0) fetch_at(masks_, kFar / 4, kNear / 4);
    }
    void block(int, std::int64_t, Vector* out) noexcept {
      const std::uint32_t mask = *masks_++;
      L::expand(mask, values_, out);
      values_ += __builtin_popcount(mask);
    }
    static constexpr bool kHasRest = false;
    static std::int64_t whole_blocks(const MatmulRows& rows) noexcept { return rows.blocks; }

   private:
    const Stored* values_;
    const std::uint32_t* masks_;
  };

  /// Four dense rows; those after the last one are the last one, whose sums nobody reads.
  class Dense {
   public:
    static Dense at(const MatmulRows& rows, std::int64_t group) noexcept {
      Dense source;
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t row = group * kGroupRows + r;
        source.rows_[r] =
            static_cast<const Stored*>(rows.values) + (row < rows.rows ? row : rows.rows - 1) * rows.row_stride;
      }
      source.cols_ = rows.cols;
      return source;
    }
    STUN_EXT_INLINE void fetch(std::int64_t b) const noexcept {
      STUN_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Stored* from = rows_[r] + b * kBlockCols;
        fetch_at(from, kFar / 4, kNear / 2);
        if (sizeof(Stored) == 4) fetch_at(from, kFar / 4 + kLine, kNear / 2 + kLine);
      }
    }
    void block(int r, std::int64_t b, Vector* out) const noexcept { L::load(rows_[r] + b * kBlockCols, out); }
    /// Columns that are less than a block, filled up with zeros.
    void copy_rest(std::int64_t b, Stored (*to)[kBlockCols]) const noexcept {
      for (int r = 0; r < kRows; ++r) {
        for (std::int64_t c = 0; c < kBlockCols; ++c) {
          const std::int64_t col = b * kBlockCols + c;
          to[r][c] = col < cols_ ? rows_[r][col] : Stored{};
        }
      }
    }
    static constexpr bool kHasRest = true;
    static std::int64_t whole_blocks(const MatmulRows& rows) noexcept { return rows.cols / kBlockCols; }

   private:
    const Stored* rows_[kRows];
    std::int64_t cols_;
  };

  /// A few tokens: from memory to the sums.
  template <class Source, int tokens>
  static void stream(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const X* x, float* y,
                     std::int64_t y_stride) noexcept {
    const std::int64_t blocks = rows.blocks, whole = Source::whole_blocks(rows), x_stride = blocks * kBlockCols;
    for (std::int64_t g = begin; g < end; ++g) {
      Source source = Source::at(rows, g);
      Sum sum[kRows][tokens];
      STUN_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        STUN_EXT_UNROLL
        for (int m = 0; m < tokens; ++m) sum[r][m] = L::zero();
      }
      const auto add = [&](int r, std::int64_t b, const Vector* weights) {
        STUN_EXT_UNROLL
        for (int m = 0; m < tokens; ++m) {
          STUN_EXT_UNROLL
          for (int v = 0; v < kVectors; ++v) {
            sum[r][m] = L::dot(sum[r][m], weights[v], x + m * x_stride + b * kBlockCols + v * kLane);
          }
        }
      };
      for (std::int64_t b = 0; b < whole; ++b) {
        source.fetch(b);
        STUN_EXT_UNROLL
        for (int r = 0; r < kRows; ++r) {
          Vector weights[kVectors];
          source.block(r, b, weights);
          add(r, b, weights);
        }
      }
      if constexpr (Source::kHasRest) {
        if (whole < blocks) {
          Stored rest[kRows][kBlockCols];
          source.copy_rest(whole, rest);
          STUN_EXT_UNROLL
          for (int r = 0; r < kRows; ++r) {
            Vector weights[kVectors];
            L::load(rest[r], weights);
            add(r, whole, weights);
          }
        }
      }
      STUN_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        STUN_EXT_UNROLL
        for (int m = 0; m < tokens; ++m) y[m * y_stride + (g - begin) * kGroupRows + r] = L::total(sum[r][m]);
      }
    }
  }

  static constexpr std::int64_t kPanelBlocks = 32;  ///< blocks that are spread at once
  static constexpr std::int64_t kPanelTokens = 64;  ///< tokens for which that is done once
  static constexpr std::int64_t kPanelCols = kPanelBlocks * kBlockCols;

  /// Rows in cache times up to kTokens tokens, added to sums in memory.
  template <int tokens>
  static void tile(const Spread* weights, std::int64_t blocks, const X* x, std::int64_t x_stride, Sum* sums) noexcept {
    Sum sum[kRows][tokens];
    STUN_EXT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      STUN_EXT_UNROLL
      for (int m = 0; m < tokens; ++m) sum[r][m] = sums[r * tokens + m];
    }
    for (std::int64_t c = 0; c < blocks * kBlockCols; c += kLane) {
      Vector of_row[kRows];
      STUN_EXT_UNROLL
      for (int r = 0; r < kRows; ++r) of_row[r] = L::load_spread(weights + r * kPanelCols + c);
      STUN_EXT_UNROLL
      for (int m = 0; m < tokens; ++m) {
        STUN_EXT_UNROLL
        for (int r = 0; r < kRows; ++r) sum[r][m] = L::dot(sum[r][m], of_row[r], x + m * x_stride + c);
      }
    }
    STUN_EXT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      STUN_EXT_UNROLL
      for (int m = 0; m < tokens; ++m) sums[r * tokens + m] = sum[r][m];
    }
  }

  template <int tokens>
  static void finish(const Sum* sums, float* y, std::int64_t y_stride) noexcept {
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < tokens; ++m) y[m * y_stride + r] = L::total(sums[r * tokens + m]);
    }
  }

  /// `function(integral constant)` for 1 to kTokens.
  template <int most = L::kTokens, class Function>
  static void with_tokens(std::int64_t tokens, Function&& function) noexcept {
    if constexpr (most > 1) {
      if (tokens < most) return with_tokens<most - 1>(tokens, function);
    }
    function(Count<most>{});
  }
  template <int n>
  struct Count {
    static constexpr int value = n;
  };

  template <class Source>
  static void panels(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const X* x, std::int64_t tokens,
                     float* y, std::int64_t y_stride) noexcept {
    constexpr std::int64_t kTiles = kPanelTokens / L::kTokens;
    const std::int64_t blocks = rows.blocks, whole = Source::whole_blocks(rows), x_stride = blocks * kBlockCols;
    alignas(64) Spread panel[kRows * kPanelCols];
    Sum sums[kTiles][kRows * L::kTokens];
    for (std::int64_t g = begin; g < end; ++g) {
      Source source = Source::at(rows, g);
      for (auto& tile_sums : sums) {
        for (Sum& sum : tile_sums) sum = L::zero();
      }
      for (std::int64_t b0 = 0; b0 < blocks; b0 += kPanelBlocks) {
        const std::int64_t count = blocks - b0 < kPanelBlocks ? blocks - b0 : kPanelBlocks;
        const std::int64_t end_whole = b0 + count < whole ? b0 + count : whole;
        for (std::int64_t b = b0; b < end_whole; ++b) {
          source.fetch(b);
          STUN_EXT_UNROLL
          for (int r = 0; r < kRows; ++r) {
            Vector weights[kVectors];
            source.block(r, b, weights);
            L::store(weights, panel + r * kPanelCols + (b - b0) * kBlockCols);
          }
        }
        if constexpr (Source::kHasRest) {
          if (b0 + count > whole) {
            Stored rest[kRows][kBlockCols];
            source.copy_rest(whole, rest);
            for (int r = 0; r < kRows; ++r) {
              Vector weights[kVectors];
              L::load(rest[r], weights);
              L::store(weights, panel + r * kPanelCols + (whole - b0) * kBlockCols);
            }
          }
        }
        for (std::int64_t m = 0; m < tokens; m += L::kTokens) {
          const X* of_tokens = x + m * x_stride + b0 * kBlockCols;
          with_tokens(tokens - m, [&](auto n) {
            tile<decltype(n)::value>(panel, count, of_tokens, x_stride, sums[m / L::kTokens]);
          });
        }
      }
      for (std::int64_t m = 0; m < tokens; m += L::kTokens) {
        float* to = y + m * y_stride + (g - begin) * kGroupRows;
        with_tokens(tokens - m, [&](auto n) { finish<decltype(n)::value>(sums[m / L::kTokens], to, y_stride); });
      }
    }
  }

  template <class Source>
  static void multiply_source(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const X* x,
                              std::int64_t tokens, float* y, std::int64_t y_stride) noexcept {
    if (tokens <= L::kTokens) {
      with_tokens(tokens, [&](auto n) { stream<Source, decltype(n)::value>(rows, begin, end, x, y, y_stride); });
      return;
    }
    for (std::int64_t m = 0; m < tokens; m += kPanelTokens) {
      const std::int64_t count = tokens - m < kPanelTokens ? tokens - m : kPanelTokens;
      panels<Source>(rows, begin, end, x + m * rows.blocks * kBlockCols, count, y + m * y_stride, y_stride);
    }
  }

  static void multiply(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const X* x, std::int64_t tokens,
                       float* y, std::int64_t y_stride) noexcept {
    if (rows.masks != nullptr) {
      multiply_source<Packed>(rows, begin, end, x, tokens, y, y_stride);
    } else {
      multiply_source<Dense>(rows, begin, end, x, tokens, y, y_stride);
    }
  }
};

}  // namespace stun_ext::detail
