// SPDX-License-Identifier: Apache-2.0
// Wanda and magnitude masks, row by row. A block of threads holds the uppers of a row in registers, 32 elements a thread,
// and 16-bit weights and the roots of the norms in shared memory, so that device memory is read once and written once
// (float32 rows, twice as large, are read again from the second cache). The cut is found by counting, two limits a pass
// (wanda.cuh); the few columns that share its upper half are listed and ranked by the lower halves of their keys and
// their columns.
#include "check.hpp"
#include "launch.hpp"
#include "wanda.cuh"

namespace stun_ext::cuda {
namespace detail {
namespace {

/// A batch as kernels see it. Strides are in elements.
struct Rows {
  void* weight;
  std::int64_t matrix_stride, row_stride, col_stride;
  std::int64_t rows, total_rows;
  int cols;
  const float* input_sq_norm;
  const std::int64_t* counts;
  std::int64_t count_each;
  std::uint8_t* mask;
  std::int64_t mask_matrix_stride, mask_row_stride;
  MaskStatus* status;
};

/// One row, as one thread sees it: its items are kVector consecutive columns, then those a block of threads further on.
template <class Element, bool is_vector>
class Row {
 public:
  static constexpr int kChunks = kItems / kVector<Element>;
  static constexpr int kChunkWords = kWords / kChunks;   ///< of uppers
  static constexpr bool kIsHeld = sizeof(Element) == 2;  ///< weights stay in shared memory

  /// @param held  room for the row's elements, for kIsHeld.
  __device__ Row(const Rows& rows, const float* roots, int root_half, void* held, Element* at)
      : at_(at),
        held_(static_cast<Element*>(held)),
        stride_(rows.col_stride),
        roots_(roots),
        root_half_(root_half),
        cols_(rows.cols) {}

  __device__ int column(int chunk) const {
    return (chunk * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kVector<Element>;
  }
  __device__ int column_of_item(int item) const {  // see equal_items
    const int word = item & (kWords - 1);
    return column(word / kChunkWords) + word % kChunkWords * 2 + (item >> 4);
  }
  __device__ Element* address(int col) const { return at_ + col * stride_; }

  /// Brings the row to where chunk() finds it.
  __device__ void fetch() const {
    if constexpr (kIsHeld) {
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        const int first = column(j);
        if (is_vector && first + kVector<Element> <= cols_) {
          copy_vector(held_ + first, address(first));
        } else if (first < cols_) {
          *reinterpret_cast<uint4*>(held_ + first) = gather(first);
        }
      }
      wait_for_copies();
    }
  }

  /// The elements of a chunk; columns beyond the row are 0.
  __device__ uint4 chunk(int j) const {
    const int first = column(j);
    if constexpr (kIsHeld) return *reinterpret_cast<const uint4*>(held_ + first);
    if (is_vector && first + kVector<Element> <= cols_) return *reinterpret_cast<const uint4*>(address(first));
    return gather(first);
  }
  __device__ std::uint32_t element(int col) const {
    return *reinterpret_cast<const Bits<Element>*>(kIsHeld ? held_ + col : address(col));
  }

  /// Roots of kVector columns lie in one piece for 4-byte elements, else in two: no two threads of a quarter of a warp
  /// then read the same banks.
  static __device__ int root_place(int col, int half) {
    if constexpr (kVector<Element> == 4) return col;
    return ((col >> 2) & 1) * half + (col >> 3) * 4 + (col & 3);
  }

  /// The uppers of a chunk; columns beyond the row come last in every order. Raises `highest`, by halves.
  __device__ void score(int j, std::uint32_t* uppers, std::uint32_t& highest) const {
    const int first = column(j);
    if (first >= cols_) {
#pragma unroll
      for (int k = 0; k < kChunkWords; ++k) uppers[k] = 0x7fff7fffu;
      return;
    }
    const uint4 vector = chunk(j);
    const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int k = 0; k < kChunkWords; k += 2) {
      float4 roots = make_float4(1.0f, 1.0f, 1.0f, 1.0f);  // products by 1 are exact
      if (roots_ != nullptr) roots = *reinterpret_cast<const float4*>(roots_ + root_place(first + 2 * k, root_half_));
      if constexpr (kIsHeld) {
        uppers[k] = uppers_of(words[k] & 0xffffu, roots.x, words[k] >> 16, roots.y);
        uppers[k + 1] = uppers_of(words[k + 1] & 0xffffu, roots.z, words[k + 1] >> 16, roots.w);
      } else {
        uppers[k] = uppers_of(words[0], roots.x, words[1], roots.y);
        uppers[k + 1] = uppers_of(words[2], roots.z, words[3], roots.w);
      }
      highest = __vmaxu2(highest, __vmaxu2(uppers[k], uppers[k + 1]));
    }
    if (first + kVector<Element> > cols_) {
#pragma unroll
      for (int k = 0; k < kChunkWords; ++k) {
        if (first + 2 * k >= cols_) uppers[k] |= 0x7fffu;
        if (first + 2 * k + 1 >= cols_) uppers[k] |= 0x7fff0000u;
      }
    }
  }

  /// The lower half of the key at a column.
  __device__ std::uint32_t lower(int col) const {
    const float root = roots_ == nullptr ? 1.0f : roots_[root_place(col, root_half_)];
    return key_of<Element>(element(col), root) & 0xffffu;
  }

 private:
  static __device__ std::uint32_t uppers_of(std::uint32_t low, float low_root, std::uint32_t high, float high_root) {
    return __byte_perm(__float_as_uint(__fmul_rn(weight_from_bits<Element>(low), low_root)),
                       __float_as_uint(__fmul_rn(weight_from_bits<Element>(high), high_root)), 0x7632) &
           0x7fff7fffu;
  }

  __device__ uint4 gather(int first) const {
    std::uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kVector<Element>; ++i) {
      if (first + i < cols_) {
        const std::uint32_t bits = *reinterpret_cast<const Bits<Element>*>(address(first + i));
        words[i * sizeof(Element) / 4] |= bits << (kIsHeld ? i % 2 * 16 : 0);
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  Element* at_;
  Element* held_;
  std::int64_t stride_;
  const float* roots_;
  int root_half_, cols_;
};

/// Calls use(item) for each.
template <class Use>
__device__ void for_each_item(std::uint32_t items, Use&& use) {
  while (items != 0) {
    use(__ffs(static_cast<int>(items)) - 1);
    items &= items - 1;
  }
}

/// Which of the items go whose uppers equal the cut's: the `ties` lowest by (lower half of the key, column). For rows
/// with many of them, such as zeros.
template <class RowType>
__device__ std::uint32_t search_ties(const RowType& row, std::uint32_t equal, int cols, int ties, BlockSum& block) {
  std::uint32_t highest = 0, inverse_lowest = 0;
  for_each_item(equal, [&](int item) {
    const std::uint32_t lower = row.lower(row.column_of_item(item));
    highest = max(highest, lower);
    inverse_lowest = max(inverse_lowest, 0xffffu - lower);
  });
  int high = static_cast<int>(block.max(highest));
  int low = 0xffff - static_cast<int>(block.max(inverse_lowest)) - 1;
  int at_low = 0;
  const auto count = [&](auto&& goes) {
    std::uint32_t found = 0;
    for_each_item(equal, [&](int item) { found += goes(row.column_of_item(item)); });
    return static_cast<int>(block.sum(found));
  };
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    const int found = count([&](int col) { return static_cast<int>(row.lower(col)) <= middle; });
    if (found < ties) {
      low = middle, at_low = found;
    } else {
      high = middle;
    }
  }
  std::uint32_t below = 0, tied = 0;
  for_each_item(equal, [&](int item) {
    const int lower = static_cast<int>(row.lower(row.column_of_item(item)));
    below |= lower < high ? 1u << item : 0u;
    tied |= lower == high ? 1u << item : 0u;
  });
  ties -= at_low;
  low = -1, high = cols - 1;  // now columns
  equal = tied;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (count([&](int col) { return col <= middle; }) < ties ? low : high) = middle;
  }
  for_each_item(tied, [&](int item) { below |= row.column_of_item(item) <= high ? 1u << item : 0u; });
  return below;
}

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

    const RowType row(rows, roots, root_half, held,
                      static_cast<Element*>(rows.weight) + matrix * rows.matrix_stride + row_in_matrix * rows.row_stride);
    row.fetch();
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
        const std::uint32_t going = search_ties(row, equal, rows.cols, cut.ties, block);
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
        for (int k = 0; k < kChunkWords / 2; ++k) keeps[k] = ~__byte_perm(goes[2 * k], goes[2 * k + 1], 0x6420) & 0x01010101u;
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
              if (!is_whole) *reinterpret_cast<Bits<Element>*>(row.address(first + i)) = static_cast<Bits<Element>>(bits);
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
  const bool weight = rows.col_stride == 1 && is_multiple(static_cast<std::int64_t>(
                                                  reinterpret_cast<std::uintptr_t>(rows.weight)), 16) &&
                      is_multiple(rows.row_stride, elements) && is_multiple(rows.matrix_stride, elements);
  const bool mask = is_multiple(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows.mask)), elements) &&
                    is_multiple(rows.mask_row_stride, elements) && is_multiple(rows.mask_matrix_stride, elements);
  return weight && mask;
}

template <class Element>
void launch(const char* operation, const Rows& rows, const CurrentDevice& device, cudaStream_t stream) {
  const bool vector = is_vector(rows, sizeof(Element));
  void (*kernel)(Rows) = rows.mask == nullptr
                             ? (vector ? cut_rows<Element, false, true> : cut_rows<Element, false, false>)
                             : (vector ? cut_rows<Element, true, true> : cut_rows<Element, true, false>);
  const int warps = (rows.cols + 32 * kItems - 1) / (32 * kItems);
  const int threads = 32 * warps;
  const std::size_t shared = static_cast<std::size_t>(threads) * kItems *
                             ((rows.input_sq_norm == nullptr ? 0 : sizeof(float)) +
                              (Row<Element, true>::kIsHeld ? sizeof(Element) : 0));
  int processors = 0, resident = 0;
  check_cuda(operation, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device.id()));
  check_cuda(operation, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  check_cuda(operation, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, reinterpret_cast<const void*>(kernel),
                                                                      threads, shared));
  const std::int64_t blocks = std::min<std::int64_t>(rows.total_rows, static_cast<std::int64_t>(processors) * resident);
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
  check_cuda(operation, cudaMemsetAsync(status, 0, sizeof(MaskStatus), queue));
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
