// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/distance.hpp"

#include "arguments.hpp"
#include "callbacks.hpp"
#include "status.hpp"
#include "stun_ext/stun_ext.h"

using namespace stun_ext;

stun_ext_status stun_ext_pairwise_distances(const stun_ext_const_matrix* rows, int32_t divide_by_frobenius,
                                            const stun_ext_matrix* out, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "pairwise_distances";
    c::CallerExecutor runs_on(kOperation, executor);
    pairwise_distances(c::view(kOperation, "rows", rows), divide_by_frobenius != 0, c::view(kOperation, "out", out),
                       runs_on);
  });
}

stun_ext_status stun_ext_condensed_distances(const stun_ext_const_matrix* rows, double* out, int64_t out_size,
                                             const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "condensed_distances";
    c::CallerExecutor runs_on(kOperation, executor);
    condensed_distances(c::view(kOperation, "rows", rows), c::span(kOperation, "out", out, out_size), runs_on);
  });
}

stun_ext_status stun_ext_coactivation_distances(const stun_ext_const_matrix* counts,
                                                const stun_ext_matrix* out) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "coactivation_distances";
    coactivation_distances(c::view(kOperation, "counts", counts), c::view(kOperation, "out", out));
  });
}

stun_ext_status stun_ext_mixed_distances(const stun_ext_const_matrix* rows, const stun_ext_const_matrix* counts,
                                         double mix, int32_t divide_by_frobenius, const stun_ext_matrix* out,
                                         const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "mixed_distances";
    c::CallerExecutor runs_on(kOperation, executor);
    mixed_distances(c::view(kOperation, "rows", rows), c::view(kOperation, "counts", counts), mix,
                    divide_by_frobenius != 0, c::view(kOperation, "out", out), runs_on);
  });
}
