// SPDX-License-Identifier: Apache-2.0
// Wanda and magnitude masks, row by row. A block of threads holds the uppers of a row in registers, 32 elements a
// thread, and 16-bit weights and the roots of the norms in shared memory, so that device memory is read once and
// written once (float32 rows, twice as large, are read again from the second cache). The cut is found by counting, two
// limits a pass (wanda.cuh); the few columns that share its upper half are listed and ranked by the lower halves of
// their keys and their columns.
#include <algorithm>

#include "check.hpp"
#include "launch.hpp"
#include "ties.cuh"
#include "wanda.cuh"

namespace stun_ext::cuda {
namespace detail {
namespace {

/// sqrt(input_sq_norm) of a matrix to shared memory; false if one is illegal.
template <class RowType>
__device__ bool load_roots(const Rows& rows, std::int64_t matrix, float* roots, int half) {
  bool is_legal = true;
  for (int col = static_cast<int>(threadIdx.x); col < rows.cols; col += static_cast<int>(blockDim.x)) {
    const std::int64_t place = matrix * rows.cols + col;
    const float value = rows.input_sq_norm[place];
    if (!is_legal_norm(value)) {
      is_legal = false;
      note(&rows.status->illegal_norm, static_cast<std::uint64_t>(place));
    }
    roots[RowType::root_place(col, half)] = __fsqrt_rn(value);
  }
  return __syncthreads_and(is_legal) != 0;
}

template <class Element, bool is_mask, bool is_vector>
__global__ void __launch_bounds__(1024, 1) cut_rows(const Rows rows) {
  using RowType = Row<Element, is_vector>;
  constexpr int kChunks = RowType::kChunks, kChunkWords = RowType::kChunkWords, kVec = kVector<Element>;
  extern __shared__ float4 dynamic[];
  __shared__ Shared shared;
  float* roots = rows.input_sq_norm == nullptr ? nullptr : reinterpret_cast<float*>(dynamic);
  const int root_half = static_cast<int>(blockDim.x) * (kItems / 2);
  void* held = dynamic + (roots == nullptr ? 0 : blockDim.x * (kItems * sizeof(float) / sizeof(float4)));
  const int most_listed = min(kMostListed, kListedPerWarp * static_cast<int>(blockDim.x >> 5));
  BlockSum block(shared);
  CutSearch search;
  const std::int64_t begin = rows.total_rows * blockIdx.x / gridDim.x;
  const std::int64_t end = rows.total_rows * (blockIdx.x + 1) / gridDim.x;
  std::int64_t matrix = begin / rows.rows, row_in_matrix = begin % rows.rows;
  bool is_new = true, is_legal = true;
  unsigned long long zeros = 0;

  for (std::int64_t place = begin; place < end; ++place, ++row_in_matrix) {
    if (row_in_matrix == rows.rows) row_in_matrix = 0, ++matrix, is_new = true;
    if (is_new && roots != nullptr) {
      __syncthreads();  // all are done with the norms of the matrix before
      is_legal = load_roots<RowType>(rows, matrix, roots, root_half);
    }
    is_new = false;
    const std::int64_t count = rows.counts == nullptr ? rows.count_each : rows.counts[place];
    if (count < 0 || count > rows.cols) {
      if (threadIdx.x == 0) note(&rows.status->illegal_count, static_cast<std::uint64_t>(place));
      continue;
    }
    if (!is_legal) continue;
    const int wanted = static_cast<int>(count);

    Element* at = static_cast<Element*>(rows.weight) + matrix * rows.matrix_stride + row_in_matrix * rows.row_stride;
    const RowType row(rows, roots, root_half, held, at);
    row.fetch();
    // The next row, while this one is searched. Not for float32, whose own row would be pushed out of the cache before
    // it is read again, nor for masks, which leave the memory nothing to wait for.
    if (RowType::kIsHeld && is_vector && !is_mask && place + 1 < end && row_in_matrix + 1 < rows.rows) {
      prefetch(at + rows.row_stride, static_cast<std::uint32_t>(rows.cols * sizeof(Element)) & ~15u);
    }
    std::uint32_t uppers[kWords];
    std::uint32_t highest = 0;
#pragma unroll
    for (int j = 0; j < kChunks; ++j) row.score(j, uppers + j * kChunkWords, highest);
    if (threadIdx.x == 0) shared.listed = 0;
    const bool is_high = (highest & 0xffffu) >= kInfiniteUpper || (highest >> 16) >= kInfiniteUpper;
    if (__syncthreads_or(is_high)) {  // the product may have overflowed, which is legal, so look at the weights
      bool is_bad = false;
#pragma unroll 1
      for (int i = 0; i < kItems; ++i) {
        const int col = row.column_of_item(i);
        if (col < rows.cols && !is_finite<Element>(row.element(col))) {
          is_bad = true;
          note(&rows.status->not_finite, static_cast<std::uint64_t>(place * rows.cols + col));
        }
      }
      if (__syncthreads_or(is_bad)) continue;
    }

    Cut cut = {0, 0, 0};
    if (wanted == rows.cols) {
      cut.limit = static_cast<int>(kInfiniteUpper) + 1;
    } else if (wanted > 0) {
      cut = search.find(uppers, wanted, rows.cols, block);
    }
    const bool counts_zeros = !is_mask && cut.limit == 0;  // else every zero scores below the limit and goes
    const bool is_listed = cut.equal <= most_listed && cut.limit != 0;
    if (cut.ties == cut.equal) {
      cut.limit += cut.ties != 0;
      cut.equal = 0;
    } else {
      std::uint32_t equal = equal_items(uppers, cut.limit);
      if (is_listed) {
        for_each_item(equal, [&](int item) {
          const int col = row.column_of_item(item);
          shared.list[atomicAdd(&shared.listed, 1u)] = row.lower(col) << 15 | static_cast<std::uint32_t>(col);
        });
        if (threadIdx.x < 4) shared.list[cut.equal + static_cast<int>(threadIdx.x)] = 0xffffffffu;
      } else {
        const std::uint32_t going = search_ties(row, equal, cut.ties, block);
        equal &= ~going;
#pragma unroll
        for (int k = 0; k < kWords; ++k) uppers[k] = (uppers[k] & ~halves(going, k)) | (halves(equal, k) & 0x7fff7fffu);
        cut.limit = max(cut.limit, 1);
        cut.equal = 0;
      }
    }

    const std::uint32_t pivot = biased(cut.limit - 1);
    std::uint8_t* mask =
        is_mask ? rows.mask + matrix * rows.mask_matrix_stride + row_in_matrix * rows.mask_row_stride : nullptr;
    unsigned row_zeros = 0;
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int first = row.column(j);
      if (first >= rows.cols) break;
      std::uint32_t goes[kChunkWords];
#pragma unroll
      for (int k = 0; k < kChunkWords; ++k) goes[k] = at_most(pivot, uppers[j * kChunkWords + k]);
      const bool is_whole = is_vector && first + kVec <= rows.cols;
      if constexpr (is_mask) {
        std::uint32_t keeps[kChunkWords / 2];
#pragma unroll
        for (int k = 0; k < kChunkWords / 2; ++k)
          keeps[k] = ~__byte_perm(goes[2 * k], goes[2 * k + 1], 0x6420) & 0x01010101u;
        if (is_whole) {
          if constexpr (kVec == 8) {
            __stcs(reinterpret_cast<uint2*>(mask + first), make_uint2(keeps[0], keeps[1]));
          } else {
            __stcs(reinterpret_cast<std::uint32_t*>(mask + first), keeps[0]);
          }
        } else {
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            if (first + i < rows.cols) mask[first + i] = static_cast<std::uint8_t>(keeps[i / 4] >> (i % 4 * 8) & 1u);
          }
        }
      } else {
        uint4 vector = row.chunk(j);
        if constexpr (RowType::kIsHeld) {
          vector.x &= ~goes[0], vector.y &= ~goes[1], vector.z &= ~goes[2], vector.w &= ~goes[3];
        } else {
          if (goes[0] & 0xffffu) vector.x = 0;
          if (goes[0] >> 16) vector.y = 0;
          if (goes[1] & 0xffffu) vector.z = 0;
          if (goes[1] >> 16) vector.w = 0;
        }
        const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
        if (is_whole) store_vector(row.address(first), vector);
        if (!is_whole || counts_zeros) {
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            const std::uint32_t bits = RowType::kIsHeld ? words[i / 2] >> (i % 2 * 16) & 0xffffu : words[i % 4];
            if (first + i < rows.cols) {
              row_zeros += magnitude_bits<Element>(bits) == 0;
              if (!is_whole)
                *reinterpret_cast<Bits<Element>*>(row.address(first + i)) = static_cast<Bits<Element>>(bits);
            }
          }
        }
      }
    }
    if (cut.equal != 0) {
      __syncthreads();  // the list is complete, and what it names has been written by whoever holds it
      for (int i = static_cast<int>(threadIdx.x); i < cut.equal; i += static_cast<int>(blockDim.x)) {
        const std::uint32_t own = shared.list[i];
        int before = 0;
        for (int k = 0; k < cut.equal; k += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(shared.list + k);
          before += (four.x < own) + (four.y < own) + (four.z < own) + (four.w < own);
        }
        if (before >= cut.ties) continue;
        const int col = static_cast<int>(own & 0x7fffu);
        if constexpr (is_mask) {
          mask[col] = 0;
        } else {
          *reinterpret_cast<Bits<Element>*>(row.address(col)) = 0;
        }
      }
    }
    if constexpr (!is_mask) {
      if (counts_zeros) {
        zeros += row_zeros;
      } else if (threadIdx.x == 0) {
        zeros += static_cast<unsigned>(wanted);
      }
    }
  }
  if (!is_mask && zeros != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&rows.status->zeros), zeros);
}

bool is_multiple(std::int64_t value, std::int64_t of) noexcept { return value % of == 0; }

/// Whether rows may be moved 16 bytes at a time.
bool is_vector(const Rows& rows, std::int64_t size) noexcept {
  const std::int64_t elements = 16 / size;
  const bool weight = rows.col_stride == 1 &&
                      is_multiple(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows.weight)), 16) &&
                      is_multiple(rows.row_stride, elements) && is_multiple(rows.matrix_stride, elements);
  const bool mask = is_multiple(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows.mask)), elements) &&
                    is_multiple(rows.mask_row_stride, elements) && is_multiple(rows.mask_matrix_stride, elements);
  return weight && mask;
}

/// Blocks that the device runs at once. Answers are kept: to ask costs as much as to launch.
std::int64_t resident_blocks(const char* operation, const void* kernel, int device, int threads, std::size_t shared) {
  struct Answer {
    const void* kernel;
    int device, threads;
    std::size_t shared;
    std::int64_t blocks;
  };
  constexpr int kKept = 16;
  thread_local Answer answers[kKept] = {};
  thread_local int next = 0;
  for (const Answer& answer : answers) {
    if (answer.kernel == kernel && answer.device == device && answer.threads == threads && answer.shared == shared) {
      return answer.blocks;
    }
  }
  int processors = 0, resident = 0;
  check_cuda(operation, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  int most = 0;  // set to what the device has, not to `shared`: another thread may have asked for more
  check_cuda(operation, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes;
  check_cuda(operation, cudaFuncGetAttributes(&attributes, kernel));
  check_cuda(operation, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             most - static_cast<int>(attributes.sharedSizeBytes)));
  check_cuda(operation, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared));
  if (resident == 0)
    throw Error(std::string("[") + operation + "] a row does not fit into this device's shared memory");
  answers[next] = {kernel, device, threads, shared, static_cast<std::int64_t>(processors) * resident};
  next = (next + 1) % kKept;
  return static_cast<std::int64_t>(processors) * resident;
}

template <class Element>
void launch(const char* operation, const Rows& rows, const CurrentDevice& device, cudaStream_t stream) {
  const bool vector = is_vector(rows, sizeof(Element));
  void (*kernel)(Rows) = rows.mask == nullptr
                             ? (vector ? cut_rows<Element, false, true> : cut_rows<Element, false, false>)
                             : (vector ? cut_rows<Element, true, true> : cut_rows<Element, true, false>);
  const int warps = (rows.cols + 32 * kItems - 1) / (32 * kItems);
  const int threads = 32 * warps;
  const std::size_t shared =
      static_cast<std::size_t>(threads) * kItems *
      ((rows.input_sq_norm == nullptr ? 0 : sizeof(float)) + (Row<Element, true>::kIsHeld ? sizeof(Element) : 0));
  const std::int64_t blocks = std::min(
      rows.total_rows, resident_blocks(operation, reinterpret_cast<const void*>(kernel), device.id(), threads, shared));
  Rows copy = rows;
  void* arguments[] = {&copy};
  check_cuda(operation, cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                         dim3(static_cast<unsigned>(threads)), arguments, shared, stream));
}

void run(const char* operation, const Batch<ConstMatrixView>& weight, const float* input_sq_norm,
         const PruneCounts& counts, const MaskView& mask, std::int64_t mask_stride, MaskStatus* status,
         const Stream& stream) {
  const ConstMatrixView& view = weight.first;
  const CurrentDevice device(operation, stream);
  const auto queue = static_cast<cudaStream_t>(stream.handle);
  Rows rows{const_cast<void*>(view.data),
            weight.count > 1 ? weight.stride : 0,
            view.rows > 1 ? view.row_stride : 0,
            view.col_stride,
            view.rows,
            weight.count * view.rows,
            static_cast<int>(view.cols),
            input_sq_norm,
            counts.per_row,
            counts.each,
            mask.data,
            weight.count > 1 ? mask_stride : 0,
            view.rows > 1 ? mask.row_stride : 0,
            status};
  if (rows.total_rows == 0 || rows.cols == 0) return;
  if (view.dtype == DType::f32) return launch<float>(operation, rows, device, queue);
  if (view.dtype == DType::f16) return launch<__half>(operation, rows, device, queue);
  launch<__nv_bfloat16>(operation, rows, device, queue);
}

}  // namespace
}  // namespace detail

void wanda_mask(const Batch<ConstMatrixView>& weight, const float* input_sq_norm, const PruneCounts& prune_counts,
                const Batch<MaskView>& mask, MaskStatus* status, Stream stream) {
  constexpr const char* kOperation = "wanda_mask";
  detail::check_weights(kOperation, "weight", weight, false);
  detail::check_mask(kOperation, mask, weight);
  detail::check_counts(kOperation, prune_counts, weight.first.cols);
  detail::check_status(kOperation, status);
  detail::run(kOperation, weight, input_sq_norm, prune_counts, mask.first, mask.stride, status, stream);
}

void wanda_prune(const Batch<MatrixView>& weight, const float* input_sq_norm, const PruneCounts& prune_counts,
                 MaskStatus* status, Stream stream) {
  constexpr const char* kOperation = "wanda_prune";
  detail::check_weights(kOperation, "weight", weight, true);
  detail::check_counts(kOperation, prune_counts, weight.first.cols);
  detail::check_status(kOperation, status);
  detail::run(kOperation, weight, input_sq_norm, prune_counts, {}, 0, status, stream);
}

}  // namespace stun_ext::cuda
