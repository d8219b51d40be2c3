// SPDX-License-Identifier: Apache-2.0
#include "sparse/packed.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "aligned.hpp"
#include "check.hpp"
#include "row_blocks.hpp"

namespace stun_ext {
namespace {

using detail::fail;
using detail::packed_blocks;
using detail::packed_groups;

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kMost = std::int64_t{1}
                               << 56;  // elements; no memory holds so many, and no sum of sizes overflows

void check_dtype(const char* operation, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
    fail(operation, "dtype must be one of float32, float16, bfloat16, got ", name_of(dtype));
  }
}

std::int64_t value_bytes(std::int64_t nnz, DType dtype) noexcept {
  const std::int64_t bytes = nnz * static_cast<std::int64_t>(size_of(dtype));
  return (bytes + kLine - 1) / kLine * kLine + kLine;
}

/// Groups that hold anything at all.
std::int64_t groups_of(std::int64_t rows, std::int64_t cols) noexcept { return cols == 0 ? 0 : packed_groups(rows); }

std::int64_t mask_count(std::int64_t rows, std::int64_t cols) noexcept {
  return packed_groups(rows) * packed_blocks(cols) * kPackedRows;
}

std::int64_t ones(std::uint32_t bits) noexcept { return __builtin_popcount(bits); }

/// Calls `function(group, rows)` with the addresses of the group's rows, each of contiguous elements.
template <class Function>
void for_each_group(const ConstMatrixView& weight, std::int64_t begin, std::int64_t end, Function&& function) {
  const std::int64_t last = std::min(weight.rows, end * kPackedRows);
  detail::RowBlocks rows(weight);
  const void* of_group[kPackedRows] = {};
  rows.for_each_block(begin * kPackedRows, last, [&](std::int64_t row, std::int64_t count) {
    for (std::int64_t r = 0; r < count; ++r) {  // one by one, or in blocks of whole groups
      of_group[(row + r) % kPackedRows] = rows.row(r);
      const bool is_last = row + r + 1 == weight.rows;
      if ((row + r) % kPackedRows == kPackedRows - 1 || is_last) {
        for (std::int64_t rest = (row + r) % kPackedRows + 1; rest < kPackedRows; ++rest) of_group[rest] = nullptr;
        function((row + r) / kPackedRows, of_group);
      }
    }
  });
}

/// Counts of values per group, as offsets[g + 1]; then their sums.
template <class Count>
void fill_offsets(std::int64_t rows, std::int64_t cols, std::int64_t* offsets, Executor& executor, Count&& count) {
  const std::int64_t groups = groups_of(rows, cols);
  std::fill(offsets, offsets + groups + 1, 0);
  auto task = [&](std::int64_t begin, std::int64_t end) { count(begin, end, offsets + 1); };
  executor.parallel_for(groups, detail::packed_groups_per_task(rows, cols, 8, executor), task);
  for (std::int64_t g = 0; g < groups; ++g) offsets[g + 1] += offsets[g];
}

template <class Bits>
void count_dense(const ConstMatrixView& weight, std::int64_t begin, std::int64_t end, std::int64_t* counts) {
  for_each_group(weight, begin, end, [&](std::int64_t g, const void* const* rows) {
    std::int64_t count = 0;
    for (std::int64_t r = 0; r < kPackedRows && rows[r] != nullptr; ++r) {
      const auto* row = static_cast<const Bits*>(rows[r]);
      for (std::int64_t c = 0; c < weight.cols; ++c) count += row[c] != 0;
    }
    counts[g] = count;
  });
}

void dense_offsets(const ConstMatrixView& weight, std::int64_t* offsets, Executor& executor) {
  fill_offsets(weight.rows, weight.cols, offsets, executor,
               [&](std::int64_t begin, std::int64_t end, std::int64_t* counts) {
                 if (weight.dtype == DType::f32) {
                   count_dense<std::uint32_t>(weight, begin, end, counts);
                 } else {
                   count_dense<std::uint16_t>(weight, begin, end, counts);
                 }
               });
}

/// Up to 32 weights as a mask and, from `values` on, those present.
template <class Bits>
std::uint32_t pack_block(const Bits* weights, std::int64_t count, Bits*& values) noexcept {
  std::uint32_t mask = 0;
  Bits present[kPackedCols + 1];  // without a branch for each: what is absent is overwritten
  std::int64_t n = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    const bool is_present = weights[c] != 0;
    mask |= static_cast<std::uint32_t>(is_present) << c;
    present[n] = weights[c];
    n += is_present;
  }
  std::memcpy(values, present, static_cast<std::size_t>(n) * sizeof(Bits));
  values += n;
  return mask;
}

template <class Bits>
void pack_groups(const ConstMatrixView& weight, const std::int64_t* offsets, std::byte* values, std::uint32_t* masks,
                 Executor& executor) {
  const std::int64_t blocks = packed_blocks(weight.cols);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    for_each_group(weight, begin, end, [&](std::int64_t g, const void* const* rows) {
      Bits* value = reinterpret_cast<Bits*>(values) + offsets[g];
      std::uint32_t* mask = masks + g * blocks * kPackedRows;
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t count = std::min(kPackedCols, weight.cols - b * kPackedCols);
        for (std::int64_t r = 0; r < kPackedRows; ++r) {
          *mask++ =
              rows[r] == nullptr ? 0 : pack_block(static_cast<const Bits*>(rows[r]) + b * kPackedCols, count, value);
        }
      }
    });
  };
  executor.parallel_for(groups_of(weight.rows, weight.cols),
                        detail::packed_groups_per_task(weight.rows, weight.cols, 8, executor), task);
}

void pack_checked(const ConstMatrixView& weight, const std::int64_t* offsets, std::int64_t bytes, std::byte* values,
                  std::uint32_t* masks, Executor& executor) {
  const std::int64_t used =
      offsets[groups_of(weight.rows, weight.cols)] * static_cast<std::int64_t>(size_of(weight.dtype));
  std::memset(values + used, 0, static_cast<std::size_t>(bytes - used));
  if (weight.dtype == DType::f32) {
    pack_groups<std::uint32_t>(weight, offsets, values, masks, executor);
  } else {
    pack_groups<std::uint16_t>(weight, offsets, values, masks, executor);
  }
}

void check_buffers(const char* operation, DType dtype, std::int64_t nnz, std::int64_t n_masks, const void* values,
                   std::size_t value_size, const void* masks, std::size_t mask_size) {
  if (static_cast<std::int64_t>(mask_size) != n_masks) {
    fail(operation, "masks must hold ", n_masks, " values, got ", mask_size);
  }
  if (n_masks > 0 && masks == nullptr) fail(operation, "masks must not be null");
  if (reinterpret_cast<std::uintptr_t>(masks) % sizeof(std::uint32_t) != 0) {
    fail(operation, "masks must be aligned to 4 bytes, got misaligned memory");
  }
  const std::int64_t bytes = value_bytes(nnz, dtype);
  if (static_cast<std::int64_t>(value_size) != bytes) {
    fail(operation, "values must hold ", bytes, " bytes, for ", nnz, " of ", name_of(dtype), ", got ", value_size);
  }
  if (values == nullptr) fail(operation, "values must not be null");
  if (reinterpret_cast<std::uintptr_t>(values) % size_of(dtype) != 0) {
    fail(operation, "values must be aligned to ", size_of(dtype), " bytes, got misaligned memory");
  }
}

template <class Bits>
void unpack_groups(const PackedMatrix& matrix, const MatrixView& weight, std::int64_t begin, std::int64_t end) {
  const std::int64_t blocks = packed_blocks(matrix.cols());
  const auto* values = reinterpret_cast<const Bits*>(matrix.values().data());
  auto* data = static_cast<Bits*>(weight.data);
  for (std::int64_t g = begin; g < end; ++g) {
    const Bits* value = values + matrix.offsets()[static_cast<std::size_t>(g)];
    const std::uint32_t* mask = matrix.masks().data() + g * blocks * kPackedRows;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t count = std::min(kPackedCols, matrix.cols() - b * kPackedCols);
      for (std::int64_t r = 0; r < kPackedRows; ++r) {
        const std::uint32_t bits = *mask++;
        const std::int64_t row = g * kPackedRows + r;
        if (row >= matrix.rows()) continue;
        Bits* to = data + row * weight.row_stride + b * kPackedCols * weight.col_stride;
        for (std::int64_t c = 0; c < count; ++c) {
          to[c * weight.col_stride] = (bits >> c & 1) != 0 ? *value++ : Bits{0};
        }
      }
    }
  }
}

/// Bytes from a cache line on, not initialised. Of large ones all whole huge pages come as such where the system has
/// them, since one core reads these a quarter faster (benchmarks/results/ops_sparse.md); the rest costs no more memory.
class Buffer {
 public:
  void allocate(std::size_t size) {
    constexpr std::size_t kHugePage = std::size_t{2} << 20, kHugeFrom = 4 * kHugePage;
    const std::align_val_t alignment = size >= kHugeFrom ? std::align_val_t{kHugePage} : detail::kCacheLine;
    data_ = {static_cast<std::byte*>(::operator new(size, alignment)), Free{alignment}};
#ifdef __linux__
    if (size >= kHugeFrom) madvise(data_.get(), size / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: it may fail
#endif
  }
  std::byte* data() const noexcept { return data_.get(); }

 private:
  struct Free {
    std::align_val_t alignment = detail::kCacheLine;
    void operator()(std::byte* data) const noexcept { ::operator delete(data, alignment); }
  };
  std::unique_ptr<std::byte, Free> data_{nullptr, Free{}};
};

/// What a matrix owns.
struct Storage {
  std::vector<std::int64_t> offsets;
  Buffer values;
  Buffer masks;
};

constexpr std::initializer_list<DType> kWeights = {DType::f32, DType::f16, DType::bf16};

}  // namespace

namespace detail {

std::int64_t packed_groups_per_task(std::int64_t rows, std::int64_t cols, std::int64_t multiple,
                                    const Executor& executor) noexcept {
  constexpr std::int64_t kTasksPerThread = 8;
  const std::int64_t even = packed_groups(rows) / (kTasksPerThread * executor.concurrency());
  const std::int64_t groups = std::max(rows_per_task(cols) / kPackedRows, even);
  return (std::max<std::int64_t>(groups, 1) + multiple - 1) / multiple * multiple;
}

}  // namespace detail

std::int64_t packed_value_bytes(std::int64_t nnz, DType dtype) {
  constexpr const char* kOperation = "packed_value_bytes";
  check_dtype(kOperation, dtype);
  if (nnz < 0 || nnz > kMost) fail(kOperation, "nnz must be in [0, ", kMost, "], got ", nnz);
  return value_bytes(nnz, dtype);
}

PackedSize packed_size(ConstMatrixView weight, Executor& executor) {
  detail::check_view("packed_size", "weight", weight, kWeights);
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(groups_of(weight.rows, weight.cols)) + 1);
  dense_offsets(weight, offsets.data(), executor);
  return {offsets.back(), value_bytes(offsets.back(), weight.dtype), mask_count(weight.rows, weight.cols)};
}

PackedMatrix pack(ConstMatrixView weight, Executor& executor) {
  detail::check_view("pack", "weight", weight, kWeights);
  auto storage = std::make_shared<Storage>();
  storage->offsets.resize(static_cast<std::size_t>(groups_of(weight.rows, weight.cols)) + 1);
  dense_offsets(weight, storage->offsets.data(), executor);
  const std::int64_t bytes = value_bytes(storage->offsets.back(), weight.dtype);
  const auto masks = static_cast<std::size_t>(mask_count(weight.rows, weight.cols));
  storage->values.allocate(static_cast<std::size_t>(bytes));
  storage->masks.allocate(masks * sizeof(std::uint32_t));
  auto* mask_data = reinterpret_cast<std::uint32_t*>(storage->masks.data());
  pack_checked(weight, storage->offsets.data(), bytes, storage->values.data(), mask_data, executor);

  PackedMatrix matrix;
  matrix.rows_ = weight.rows;
  matrix.cols_ = weight.cols;
  matrix.dtype_ = weight.dtype;
  matrix.values_ = {storage->values.data(), static_cast<std::size_t>(bytes)};
  matrix.masks_ = {mask_data, masks};
  matrix.offsets_ = {storage->offsets.data(), storage->offsets.size()};
  matrix.storage_ = std::move(storage);
  return matrix;
}

void pack_into(ConstMatrixView weight, Span<std::byte> values, Span<std::uint32_t> masks, Executor& executor) {
  constexpr const char* kOperation = "pack_into";
  detail::check_view(kOperation, "weight", weight, kWeights);
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(groups_of(weight.rows, weight.cols)) + 1);
  dense_offsets(weight, offsets.data(), executor);
  check_buffers(kOperation, weight.dtype, offsets.back(), mask_count(weight.rows, weight.cols), values.data(),
                values.size(), masks.data(), masks.size());
  pack_checked(weight, offsets.data(), static_cast<std::int64_t>(values.size()), values.data(), masks.data(), executor);
}

PackedMatrix PackedMatrix::from_buffers(std::int64_t rows, std::int64_t cols, DType dtype, Span<const std::byte> values,
                                        Span<const std::uint32_t> masks, Executor& executor) {
  constexpr const char* kOperation = "from_buffers";
  check_dtype(kOperation, dtype);
  if (rows < 0 || cols < 0) fail(kOperation, "rows and cols must not be negative, got [", rows, ", ", cols, "]");
  if (rows > kMost || cols > kMost ||
      static_cast<double>(rows) * static_cast<double>(cols) > static_cast<double>(kMost)) {
    fail(kOperation, "rows and cols must be of a matrix that fits memory, got [", rows, ", ", cols, "]");
  }
  // The masks first: before anything of the size that the shape claims is allocated.
  const std::int64_t n_masks = mask_count(rows, cols);
  check_buffers(kOperation, dtype, 0, n_masks, &rows, static_cast<std::size_t>(value_bytes(0, dtype)), masks.data(),
                masks.size());
  const std::int64_t blocks = packed_blocks(cols);
  auto storage = std::make_shared<Storage>();
  storage->offsets.resize(static_cast<std::size_t>(groups_of(rows, cols)) + 1);
  const std::uint32_t last_columns =
      cols % kPackedCols == 0 ? ~std::uint32_t{0} : (std::uint32_t{1} << (cols % kPackedCols)) - 1;
  std::atomic<bool> is_outside{false};
  fill_offsets(rows, cols, storage->offsets.data(), executor,
               [&](std::int64_t begin, std::int64_t end, std::int64_t* counts) {
                 std::uint32_t outside = 0;
                 for (std::int64_t g = begin; g < end; ++g) {
                   const std::uint32_t* mask = masks.data() + g * blocks * kPackedRows;
                   std::int64_t count = 0;
                   for (std::int64_t i = 0; i < blocks * kPackedRows; ++i) count += ones(mask[i]);
                   counts[g] = count;
                   for (std::int64_t r = 0; r < kPackedRows; ++r) {
                     outside |= mask[(blocks - 1) * kPackedRows + r] & ~last_columns;
                     if (g * kPackedRows + r < rows) continue;
                     for (std::int64_t b = 0; b < blocks; ++b) outside |= mask[b * kPackedRows + r];
                   }
                 }
                 if (outside != 0) is_outside.store(true, std::memory_order_relaxed);
               });
  if (is_outside.load()) {
    fail(kOperation, "masks must be 0 outside of the matrix, got bits beyond [", rows, ", ", cols, "]");
  }
  const std::int64_t nnz = storage->offsets.back();
  check_buffers(kOperation, dtype, nnz, n_masks, values.data(), values.size(), masks.data(), masks.size());
  for (auto i = static_cast<std::size_t>(nnz) * size_of(dtype); i < values.size(); ++i) {
    if (values[i] != std::byte{0}) fail(kOperation, "values must end with zero bytes, got another at byte ", i);
  }
  // Zeros follow the last value: as much as they would hide, so many bits too many would be weights of +0, which are
  // never packed.
  const auto last = static_cast<std::size_t>(nnz) * size_of(dtype);
  if (nnz > 0 && std::all_of(values.data() + last - size_of(dtype), values.data() + last,
                             [](std::byte byte) { return byte == std::byte{0}; })) {
    fail(kOperation, "masks must announce as many values as there are, got ", nnz, ", the last of which is +0");
  }

  PackedMatrix matrix;
  matrix.rows_ = rows;
  matrix.cols_ = cols;
  matrix.dtype_ = dtype;
  matrix.values_ = values;
  matrix.masks_ = masks;
  matrix.offsets_ = {storage->offsets.data(), storage->offsets.size()};
  matrix.storage_ = std::move(storage);
  return matrix;
}

void unpack(const PackedMatrix& matrix, MatrixView weight, Executor& executor) {
  constexpr const char* kOperation = "unpack";
  detail::check_writable_view(kOperation, "weight", weight, kWeights);
  if (weight.rows != matrix.rows() || weight.cols != matrix.cols() || weight.dtype != matrix.dtype()) {
    fail(kOperation, "weight must be [", matrix.rows(), ", ", matrix.cols(), "] of ", name_of(matrix.dtype()),
         ", got [", weight.rows, ", ", weight.cols, "] of ", name_of(weight.dtype));
  }
  if (weight.rows == 0 || weight.cols == 0) return;
  auto task = [&](std::int64_t begin, std::int64_t end) {
    if (weight.dtype == DType::f32) {
      unpack_groups<std::uint32_t>(matrix, weight, begin, end);
    } else {
      unpack_groups<std::uint16_t>(matrix, weight, begin, end);
    }
  };
  executor.parallel_for(groups_of(weight.rows, weight.cols),
                        detail::packed_groups_per_task(weight.rows, weight.cols, 8, executor), task);
}

}  // namespace stun_ext
