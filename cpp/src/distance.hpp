// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

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

/// Distances of all pairs of checked rows, see pairwise_distances.
void for_each_distance(const ConstMatrixView& rows, PairSink sink, Executor& executor);

}  // namespace stun_ext::detail
