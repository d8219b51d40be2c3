// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// A non-owning reference to a callable void(i, j, distance) with i < j, called once per pair from several threads.
class PairSink {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, PairSink>>>
  PairSink(F& function) noexcept
      : object_(&function),
        call_([](void* object, std::int64_t i, std::int64_t j, double d) { (*static_cast<F*>(object))(i, j, d); }) {}

  void operator()(std::int64_t i, std::int64_t j, double distance) const { call_(object_, i, j, distance); }

 private:
  void* object_;
  void (*call_)(void*, std::int64_t, std::int64_t, double);
};

/// Shape, dtype and finiteness of observations [n >= 1, d >= 1].
void check_rows(const char* operation, const ConstMatrixView& rows, Executor& executor);

/// d² between rows i and j: the bits of for_each_distance before its square root. Any strides; no allocation.
double squared_distance(const ConstMatrixView& rows, std::int64_t i, std::int64_t j) noexcept;

/// d² between row i and `count` others.
void squared_distances(const ConstMatrixView& rows, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                       double* out) noexcept;

/// Squared distances between two sets of rows, the same bits again. Keeps its workspace.
class SquaredDistanceBlock {
 public:
  explicit SquaredDistanceBlock(std::int64_t cols) : cols_(cols) {}

  /// out[i · nb + j] for rows a[i] and b[j].
  void compute(const ConstMatrixView& rows, const std::uint32_t* a, std::int64_t na, const std::uint32_t* b,
               std::int64_t nb, double* out);

 private:
  std::int64_t cols_;
  std::vector<double> tile_a_, tile_b_, lanes_;
};

/// Distances of all pairs of checked rows, see pairwise_distances.
void for_each_distance(const ConstMatrixView& rows, PairSink sink, Executor& executor);

}  // namespace stun_ext::detail
