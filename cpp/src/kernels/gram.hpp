// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {

/// Columns that are multiplied before the products are added to the result: panels are packed in blocks of so many.
constexpr std::int64_t kGramDepth = 256;

/// How rows are packed: groups of `a_rows` (side a) or `b_rows` (side b) rows; within a group element (r, k) is at
/// k · rows + r, as float32. The last group is filled up with zeros.
struct GramKernels {
  std::int64_t a_rows;
  std::int64_t b_rows;

  /// out[i · stride + j] (+)= sum over `depth` columns of one group of each side, in float32: each term one fused
  /// multiply-add, columns in ascending order, the sum added to `out` if `accumulate`. All a_rows × b_rows are written.
  void (*multiply)(const float* a, const float* b, std::int64_t depth, float* out, std::int64_t stride,
                   bool accumulate) noexcept;

  // Kernels that pack rows in a way of their own, four bytes for each element as well, say how; others leave all this.
  /// Packs `depth` columns of a row, a multiple of depth_multiple, as row `lane` of a group.
  /// Returns the sum of squares of what packing rounded off.
  using Pack = double (*)(const double* values, std::int64_t depth, std::int64_t lane, float* group) noexcept;
  std::int64_t depth_multiple = 1;
  Pack pack_a = nullptr, pack_b = nullptr;
  /// What GramPanel::gamma() is, where sums are not made as multiply() says.
  double (*gamma)(std::int64_t cols) noexcept = nullptr;
  void (*enter)() noexcept = nullptr;  ///< before a thread multiplies, and after it has
  void (*leave)() noexcept = nullptr;
};

extern const GramKernels gram_scalar;
#if defined(__x86_64__)
extern const GramKernels gram_avx2;
extern const GramKernels gram_avx512;
/// bfloat16 tiles: x as the sum of two bfloat16, of whose four products three are taken. Needs AMX BF16 and the
/// system's permission.
extern const GramKernels gram_amx;
#elif defined(__aarch64__)
extern const GramKernels gram_neon;
#endif

}  // namespace stun_ext::detail
