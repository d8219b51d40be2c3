// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cluster/agglomerate.hpp"
#include "dispatch.hpp"
#include "kernels/linkage.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::size_t kLine = 64;

// From here on memory comes in huge pages where the system has them: clearing pages of 4 KiB one by one, and finding
// them again when a column is written, would be much of the time. Smaller blocks are reused by the allocator.
constexpr std::size_t kHugeFrom = std::size_t{32} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Columns for n clusters: those that are there and, before the first squeeze (see Agglomeration), n/8 more, or n/4
/// where that is little. An odd number of cache lines, so that the lines of a column differ in their sets.
constexpr std::int64_t capacity_for(std::int64_t n) noexcept {
  const std::int64_t columns = n + std::max(n / 8, std::min<std::int64_t>(n / 4, 256)) + kMirrored;
  return ((columns + kMirrored - 1) / kMirrored | 1) * kMirrored;
}

}  // namespace

double ClusterDistances::bytes(std::int64_t clusters) noexcept {
  const auto capacity = static_cast<double>(capacity_for(clusters));
  return 8.0 * capacity * static_cast<double>(clusters) + 64.0 * capacity;
}

ClusterDistances::ClusterDistances(std::int64_t clusters) : clusters_(clusters), capacity_(capacity_for(clusters)) {
  const std::size_t bytes = static_cast<std::size_t>(clusters) * static_cast<std::size_t>(capacity_) * sizeof(double);
  const std::align_val_t alignment{bytes >= kHugeFrom ? kHugePage : kLine};
  values_ = {static_cast<double*>(::operator new(bytes, alignment)), Free{alignment}};
#ifdef __linux__
  if (bytes >= kHugeFrom) madvise(values_.get(), bytes, MADV_HUGEPAGE);  // advice: it may fail
#endif
}

void ClusterDistances::mirror(Executor& executor) {
  const LinkageKernels& kernels = STUN_EXT_KERNELS(linkage);
  const auto mirror_columns = is_streamed(clusters_, clusters_) ? kernels.mirror_streaming : kernels.mirror;
  std::vector<double*> rows(static_cast<std::size_t>(clusters_));
  for (std::int64_t i = 0; i < clusters_; ++i) rows[static_cast<std::size_t>(i)] = row(i);
  constexpr std::int64_t kSquare = 64;  // of both sides, so that source and target fit the first cache
  const std::int64_t squares = (clusters_ + kSquare - 1) / kSquare;
  const auto mirror_to = [&](std::int64_t begin, std::int64_t end) noexcept {  // rows below the diagonal
    const std::int64_t whole = end / kMirrored * kMirrored;
    for (std::int64_t column0 = 0; column0 < end; column0 += kSquare) {
      for (std::int64_t column = column0; column < std::min(column0 + kSquare, end); column += kMirrored) {
        const std::int64_t from = std::max(begin, column + kMirrored);
        const double* const* source = rows.data() + column;
        if (from < whole) mirror_columns(source, from, whole, column, rows.data());
        for (std::int64_t i = std::max(from, whole); i < end; ++i) {
          for (std::int64_t w = 0; w < kMirrored; ++w) row(i)[column + w] = source[w][i];
        }
        for (std::int64_t i = std::max(begin, column + 1); i < std::min(end, column + kMirrored); ++i) {
          for (std::int64_t k = column; k < i; ++k) row(i)[k] = row(k)[i];
        }
      }
    }
  };
  auto task = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t index = first; index < last; ++index) {
      const std::int64_t begin = (squares - 1 - index) * kSquare;  // the longest rows first
      mirror_to(begin, std::min(begin + kSquare, clusters_));
    }
  };
  executor.parallel_for(squares, clusters_ < kParallelFrom ? squares : 1, task);
}

void ClusterDistances::Free::operator()(double* values) const noexcept { ::operator delete(values, alignment); }

}  // namespace stun_ext::detail
