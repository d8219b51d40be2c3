// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace stun_ext::detail {

// y = x Wᵀ for a packed (stun_ext/sparse.hpp) or a dense W, summed in float32.
//
//   y = x.astype(np.float32) @ W.astype(np.float32).T
//
// Few tokens: W is read once as one stream, prefetched some KB ahead, and each mask's values are spread over a register
// and multiplied with every token there. More tokens: 4 rows by 1024 columns are spread into the first cache, where
// 4 rows and 4 tokens share what they load. With AMX 32 rows by 128 columns, and tiles of 16 tokens.

/// Rows are taken in groups of 4, columns in blocks of 32.
constexpr std::int64_t kGroupRows = 4;
constexpr std::int64_t kBlockCols = 32;

/// Which rows to multiply with; packed if there are masks.
struct MatmulRows {
  const void* values = nullptr;           ///< packed: 64 bytes more than there are values may be read
  const std::uint32_t* masks = nullptr;   ///< of group g and block b: masks[(g · blocks + b) · 4 + r]
  const std::int64_t* offsets = nullptr;  ///< of the values of each group
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  ///< dense: elements between rows
  std::int64_t blocks = 0;      ///< ceil(cols / 32)
};

/// For groups [begin, end): y[m · y_stride + (g - begin) · 4 + r] = Σ W · x, for all 4 rows of the last group, too.
/// x is [tokens, blocks · 32] with zeros after the last column, y not empty.
template <class X>
using Multiply = void (*)(const MatmulRows& rows, std::int64_t begin, std::int64_t end, const X* x, std::int64_t tokens,
                          float* y, std::int64_t y_stride) noexcept;

/// By the weights' element type, with x in float32.
struct MatmulKernels {
  Multiply<float> f32, f16, bf16;
};

extern const MatmulKernels matmul_scalar;
#if defined(__x86_64__)
extern const MatmulKernels matmul_avx2;
extern const MatmulKernels matmul_avx512;

/// bfloat16 weights and x. Needs AVX-512 BF16 and VBMI2.
extern const Multiply<std::uint16_t> matmul_bf16_avx512bf16;

/// The same with x in tiles: [ceil(tokens / 16), blocks, 16, 16] pairs of columns (2k, 2k + 1) of a token, the lower
/// column in the lower half; pairs along axis 2, tokens along axis 3. Needs AMX BF16 and the system's permission, and
/// leaves the tiles released.
extern const Multiply<std::uint32_t> matmul_bf16_amx;
#elif defined(__aarch64__)
inline constexpr const MatmulKernels& matmul_neon = matmul_scalar;  // which the compiler vectorises there
#endif

}  // namespace stun_ext::detail
