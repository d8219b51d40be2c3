// SPDX-License-Identifier: Apache-2.0
// n:m masks. A thread holds 16 consecutive columns (8 if m is at most 8), whose roots it computes once, and walks down
// a strip of rows. A score stays if fewer than n others of its block come before it: one comparison a pair tells both.
#include <algorithm>

#include "check.hpp"
#include "launch.hpp"
#include "scores.cuh"

namespace stun_ext::cuda {
namespace detail {
namespace {

constexpr int kThreads = 128;
constexpr int kStrip = 32;  ///< rows that a thread walks, at most

/// A batch as kernels see it. Strides are in elements.
struct Blocks {
  void* weight;
  std::int64_t matrix_stride, row_stride, col_stride;
  std::int64_t rows, cols, strips;
  const float* input_sq_norm;
  int n, m;
  std::uint8_t* mask;  ///< or null: prune in place
  std::int64_t mask_matrix_stride, mask_row_stride;
  MaskStatus* status;
};

/// Scores as integers of their order: keys for weights; for scores themselves the bits by sign and magnitude.
template <class Element, bool is_mask>
__device__ int order_of(std::uint32_t bits, float root) {
  if constexpr (!is_mask) {
    return static_cast<int>(key_of<Element>(bits, root));
  } else {
    const int magnitude = static_cast<int>(magnitude_bits<Element>(bits));
    return bits != magnitude_bits<Element>(bits) ? -magnitude : magnitude;
  }
}

/// What the operation refuses: NaN among scores, NaN and Inf among weights.
template <class Element, bool is_mask>
__device__ bool is_refused(std::uint32_t bits) {
  return magnitude_bits<Element>(bits) > kInfinity<Element> - (is_mask ? 0 : 1);
}

template <class Element>
__device__ std::uint32_t read(const Element* from) {
  return *reinterpret_cast<const Bits<Element>*>(from);
}

/// Root of a norm, NaN if it is illegal; the caller then leaves the block.
__device__ float root_of(const Blocks& blocks, std::int64_t matrix, std::int64_t col) {
  const std::int64_t place = matrix * blocks.cols + col;
  const float value = blocks.input_sq_norm[place];
  if (is_legal_norm(value)) return __fsqrt_rn(value);
  note(&blocks.status->illegal_norm, static_cast<std::uint64_t>(place));
  return __int_as_float(0x7fc00000);
}

/// Adds those of a whole warp at once: all threads write to one place.
__device__ void add_zeros(const Blocks& blocks, unsigned zeros) {
  zeros = __reduce_add_sync(0xffffffffu, zeros);
  if ((threadIdx.x & 31) == 0 && zeros != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&blocks.status->zeros), static_cast<unsigned long long>(zeros));
  }
}

template <class Element, bool is_mask, int m, bool is_vector>
__global__ void __launch_bounds__(kThreads) keep_highest(const Blocks blocks) {
  constexpr int kColumns = m > 8 ? 16 : 8;
  constexpr int kPerWord = static_cast<int>(4 / sizeof(Element));
  constexpr int kWords = kColumns / kPerWord;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
  const auto columns = static_cast<int>(  // none, for threads beyond the row
      max(static_cast<std::int64_t>(0), min(blocks.cols - first, static_cast<std::int64_t>(kColumns))));
  const bool is_whole = is_vector && columns == kColumns;
  const std::int64_t matrix = blockIdx.z;
  const std::int64_t begin = blocks.rows * blockIdx.y / blocks.strips;
  const std::int64_t end = blocks.rows * (blockIdx.y + 1) / blocks.strips;
  float roots[kColumns];
  unsigned illegal = 0;  // columns
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    roots[i] = 1.0f;
    if (!is_mask && blocks.input_sq_norm != nullptr && i < columns) {
      roots[i] = root_of(blocks, matrix, first + i);
      illegal |= roots[i] >= 0.0f ? 0u : 1u << i;
    }
  }
  auto* base = static_cast<Element*>(blocks.weight) + matrix * blocks.matrix_stride + first * blocks.col_stride;
  unsigned zeros = 0;

  for (std::int64_t row = begin; row < end; ++row) {
    Element* at = base + row * blocks.row_stride;
    std::uint32_t words[kWords] = {};
    if (is_whole) {
#pragma unroll
      for (int k = 0; k < kWords; k += 4) {
        const uint4 vector = __ldcs(reinterpret_cast<const uint4*>(at) + k / 4);
        words[k] = vector.x, words[k + 1] = vector.y, words[k + 2] = vector.z, words[k + 3] = vector.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (i < columns) words[i / kPerWord] |= read(at + i * blocks.col_stride) << (i % kPerWord * 16);
      }
    }
    const auto bits = [&](int i) {
      return kPerWord == 1 ? words[i / kPerWord] : words[i / 2] >> (i % 2 * 16) & 0xffffu;
    };
    int order[kColumns];
    unsigned refused = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      order[i] = order_of<Element, is_mask>(bits(i), roots[i]);
      refused |= is_refused<Element, is_mask>(bits(i)) ? 1u << i : 0u;
    }
    unsigned kept = 0;  // columns
#pragma unroll
    for (int block = 0; block < kColumns; block += m) {
      int before[m] = {};
#pragma unroll
      for (int i = 0; i < m; ++i) {
#pragma unroll
        for (int k = i + 1; k < m; ++k) {
          const bool is_left = order[block + i] > order[block + k];
          before[k] += is_left;
          before[i] += !is_left;
        }
      }
#pragma unroll
      for (int i = 0; i < m; ++i) kept |= before[i] < blocks.n ? 1u << (block + i) : 0u;
    }
    unsigned left = 0;  // columns of blocks that stay as they are
    if ((refused | illegal) != 0) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if ((refused >> i & 1) != 0) {
          note(&blocks.status->not_finite,
               static_cast<std::uint64_t>((matrix * blocks.rows + row) * blocks.cols + first + i));
        }
        if (((refused | illegal) >> i & 1) != 0) left |= ((1u << m) - 1) << (i / m * m);
      }
      kept |= left;
    }
    if constexpr (is_mask) {
      std::uint8_t* mask = blocks.mask + matrix * blocks.mask_matrix_stride + row * blocks.mask_row_stride + first;
      if (is_whole && left == 0) {
        std::uint32_t bytes[kColumns / 4];
#pragma unroll
        for (int k = 0; k < kColumns / 4; ++k) {  // four bits to four bytes: the copies that the product makes
          bytes[k] = ((kept >> (4 * k) & 0xfu) * 0x00204081u) & 0x01010101u;
        }
#pragma unroll
        for (int k = 0; k < kColumns / 4; k += 2) {
          __stcs(reinterpret_cast<uint2*>(mask) + k / 2, make_uint2(bytes[k], bytes[k + 1]));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (i < columns && (left >> i & 1) == 0) mask[i] = static_cast<std::uint8_t>(kept >> i & 1);
        }
      }
    } else {
      unsigned zero = 0;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if ((kept >> i & 1) == 0) words[i / kPerWord] &= kPerWord == 1 ? 0u : i % 2 == 0 ? 0xffff0000u : 0xffffu;
        zero += i < columns && magnitude_bits<Element>(bits(i)) == 0;
      }
      zeros += zero;
      if (is_whole) {
#pragma unroll
        for (int k = 0; k < kWords; k += 4) {
          store_vector(reinterpret_cast<uint4*>(at) + k / 4,
                       make_uint4(words[k], words[k + 1], words[k + 2], words[k + 3]));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (i < columns && (kept >> i & 1) == 0) *reinterpret_cast<Bits<Element>*>(at + i * blocks.col_stride) = 0;
        }
      }
    }
  }
  if (!is_mask) add_zeros(blocks, zeros);
}

/// Any other m, one block of a row by one thread; returns its zeros. The last one that stays is found first, by its
/// order and column, so that weights are not zeroed while they are still compared.
template <class Element, bool is_mask>
__device__ unsigned keep_highest_of(const Blocks& blocks, std::int64_t block, std::int64_t blocks_per_row) {
  const std::int64_t line = block / blocks_per_row, first = block % blocks_per_row * blocks.m;
  const std::int64_t matrix = line / blocks.rows, row = line % blocks.rows;
  Element* at = static_cast<Element*>(blocks.weight) + matrix * blocks.matrix_stride + row * blocks.row_stride +
                first * blocks.col_stride;
  std::uint8_t* mask = blocks.mask + matrix * blocks.mask_matrix_stride + row * blocks.mask_row_stride + first;
  const bool has_roots = !is_mask && blocks.input_sq_norm != nullptr;
  const auto order = [&](int i) {
    const float root = has_roots ? __fsqrt_rn(blocks.input_sq_norm[matrix * blocks.cols + first + i]) : 1.0f;
    return order_of<Element, is_mask>(read(at + i * blocks.col_stride), root);
  };
  bool is_left = false;
  for (int i = 0; i < blocks.m; ++i) {
    if (is_refused<Element, is_mask>(read(at + i * blocks.col_stride))) {
      note(&blocks.status->not_finite, static_cast<std::uint64_t>(line * blocks.cols + first + i));
      is_left = true;
    }
    if (has_roots && !(root_of(blocks, matrix, first + i) >= 0.0f)) is_left = true;
  }
  if (is_left) return 0;
  int limit = 0, limit_column = 0;
  for (int i = 0; i < blocks.m; ++i) {
    const int own = order(i);
    int before = 0;
    for (int k = 0; k < blocks.m; ++k) {
      const int other = order(k);
      before += other > own || (other == own && k > i);
    }
    if (before == blocks.n - 1) limit = own, limit_column = i;
  }
  unsigned zeros = 0;
  for (int i = 0; i < blocks.m; ++i) {
    const int own = order(i);
    const bool stays = own > limit || (own == limit && i >= limit_column);
    if constexpr (is_mask) {
      mask[i] = stays;
    } else {
      auto* bits = reinterpret_cast<Bits<Element>*>(at + i * blocks.col_stride);
      if (!stays) *bits = 0;
      zeros += magnitude_bits<Element>(*bits) == 0;
    }
  }
  return zeros;
}

template <class Element, bool is_mask>
__global__ void __launch_bounds__(kThreads)
    keep_highest_of_any(const Blocks blocks, std::int64_t blocks_per_row, std::int64_t total) {
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned zeros = block < total ? keep_highest_of<Element, is_mask>(blocks, block, blocks_per_row) : 0;
  if (!is_mask) add_zeros(blocks, zeros);
}

bool is_multiple(std::int64_t value, std::int64_t of) noexcept { return value % of == 0; }
std::int64_t address_of(const void* data) noexcept {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data));
}

template <class Element, bool is_mask, int m>
void launch_quick(const char* operation, Blocks blocks, std::int64_t count, cudaStream_t stream) {
  constexpr std::int64_t kColumns = m > 8 ? 16 : 8;
  constexpr std::int64_t kElements = kVector<Element>;
  const bool is_vector = blocks.col_stride == 1 && is_multiple(address_of(blocks.weight), 16) &&
                         is_multiple(blocks.row_stride, kElements) && is_multiple(blocks.matrix_stride, kElements) &&
                         is_multiple(address_of(blocks.mask), 8) && is_multiple(blocks.mask_row_stride, 8) &&
                         is_multiple(blocks.mask_matrix_stride, 8);
  const std::int64_t wide = (blocks.cols + kColumns * kThreads - 1) / (kColumns * kThreads);
  blocks.strips = std::min<std::int64_t>((blocks.rows + kStrip - 1) / kStrip, 65535);
  const auto kernel = is_vector ? keep_highest<Element, is_mask, m, true> : keep_highest<Element, is_mask, m, false>;
  void* arguments[] = {&blocks};
  const dim3 grid(static_cast<unsigned>(wide), static_cast<unsigned>(blocks.strips), static_cast<unsigned>(count));
  check_cuda(operation,
             cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads), arguments, 0, stream));
}

template <class Element, bool is_mask>
void launch(const char* operation, const Blocks& blocks, std::int64_t count, cudaStream_t stream) {
  if (count <= 65535) {  // what a grid's third dimension takes
    if (blocks.m == 2) return launch_quick<Element, is_mask, 2>(operation, blocks, count, stream);
    if (blocks.m == 4) return launch_quick<Element, is_mask, 4>(operation, blocks, count, stream);
    if (blocks.m == 8) return launch_quick<Element, is_mask, 8>(operation, blocks, count, stream);
    if (blocks.m == 16) return launch_quick<Element, is_mask, 16>(operation, blocks, count, stream);
  }
  Blocks copy = blocks;
  std::int64_t per_row = blocks.cols / blocks.m, total = count * blocks.rows * per_row;
  void* arguments[] = {&copy, &per_row, &total};
  const std::int64_t grid = (total + kThreads - 1) / kThreads;
  if (grid > 0x7fffffff) fail(operation, "the batch must have less than 2^38 blocks of m, got ", total);
  check_cuda(operation, cudaLaunchKernel(reinterpret_cast<const void*>(keep_highest_of_any<Element, is_mask>),
                                         dim3(static_cast<unsigned>(grid)), dim3(kThreads), arguments, 0, stream));
}

template <bool is_mask>
void run(const char* operation, const Batch<ConstMatrixView>& weight, const float* input_sq_norm, std::int64_t n,
         std::int64_t m, const MaskView& mask, std::int64_t mask_stride, MaskStatus* status, const Stream& stream) {
  const ConstMatrixView& view = weight.first;
  const CurrentDevice device(operation, stream);
  const auto queue = static_cast<cudaStream_t>(stream.handle);
  if (weight.count == 0 || view.rows == 0 || view.cols == 0) return;
  const Blocks blocks{const_cast<void*>(view.data),
                      weight.count > 1 ? weight.stride : 0,
                      view.rows > 1 ? view.row_stride : 0,
                      view.col_stride,
                      view.rows,
                      view.cols,
                      0,
                      input_sq_norm,
                      static_cast<int>(n),
                      static_cast<int>(m),
                      mask.data,
                      weight.count > 1 ? mask_stride : 0,
                      view.rows > 1 ? mask.row_stride : 0,
                      status};
  if (view.dtype == DType::f32) return launch<float, is_mask>(operation, blocks, weight.count, queue);
  if (view.dtype == DType::f16) return launch<__half, is_mask>(operation, blocks, weight.count, queue);
  launch<__nv_bfloat16, is_mask>(operation, blocks, weight.count, queue);
}

}  // namespace
}  // namespace detail

void nm_mask(const Batch<ConstMatrixView>& scores, std::int64_t n, std::int64_t m, const Batch<MaskView>& mask,
             MaskStatus* status, Stream stream) {
  constexpr const char* kOperation = "nm_mask";
  detail::check_pattern(kOperation, "scores", scores.first.cols, n, m);
  detail::check_weights(kOperation, "scores", scores, false);
  detail::check_mask(kOperation, mask, scores);
  detail::check_status(kOperation, status);
  detail::run<true>(kOperation, scores, nullptr, n, m, mask.first, mask.stride, status, stream);
}

void nm_prune(const Batch<MatrixView>& weight, const float* input_sq_norm, std::int64_t n, std::int64_t m,
              MaskStatus* status, Stream stream) {
  constexpr const char* kOperation = "nm_prune";
  detail::check_weights(kOperation, "weight", weight, true);
  detail::check_pattern(kOperation, "weight", weight.first.cols, n, m);
  detail::check_status(kOperation, status);
  detail::run<false>(kOperation, weight, input_sq_norm, n, m, {}, 0, status, stream);
}

}  // namespace stun_ext::cuda
