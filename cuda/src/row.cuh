// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "scores.cuh"
#include "wanda.cuh"

namespace stun_ext::cuda::detail {

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
  __device__ Element* address(int col) const { return is_vector ? at_ + col : at_ + col * stride_; }

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

}  // namespace stun_ext::cuda::detail
