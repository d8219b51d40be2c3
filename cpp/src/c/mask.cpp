// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/mask.hpp"

#include "arguments.hpp"
#include "callbacks.hpp"
#include "status.hpp"
#include "stun_ext/saliency.hpp"
#include "stun_ext/stun_ext.h"

using namespace stun_ext;

stun_ext_status stun_ext_wanda_scores(const stun_ext_const_matrix* weight, const float* input_sq_norm,
                                      int64_t input_sq_norm_size, const stun_ext_matrix* out,
                                      const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "wanda_scores";
    c::CallerExecutor runs_on(kOperation, executor);
    wanda_scores(c::view(kOperation, "weight", weight),
                 c::span(kOperation, "input_sq_norm", input_sq_norm, input_sq_norm_size),
                 c::view(kOperation, "out", out), runs_on);
  });
}

stun_ext_status stun_ext_pruned_per_row(int64_t cols, double sparsity, int64_t* count) noexcept {
  return c::call([&] { c::at("pruned_per_row", "count", count) = pruned_per_row(cols, sparsity); });
}

stun_ext_status stun_ext_wanda_mask(const stun_ext_const_matrix* weight, const float* input_sq_norm,
                                    int64_t input_sq_norm_size, const int64_t* prune_counts, int64_t prune_counts_size,
                                    const stun_ext_mask* mask, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "wanda_mask";
    c::CallerExecutor runs_on(kOperation, executor);
    wanda_mask(c::view(kOperation, "weight", weight),
               c::span(kOperation, "input_sq_norm", input_sq_norm, input_sq_norm_size),
               c::span(kOperation, "prune_counts", prune_counts, prune_counts_size), c::view(kOperation, "mask", mask),
               runs_on);
  });
}

stun_ext_status stun_ext_wanda_prune(const stun_ext_matrix* weight, const float* input_sq_norm,
                                     int64_t input_sq_norm_size, const int64_t* prune_counts, int64_t prune_counts_size,
                                     int64_t* zeros, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "wanda_prune";
    c::CallerExecutor runs_on(kOperation, executor);
    int64_t& out = c::at(kOperation, "zeros", zeros);
    out = wanda_prune(c::view(kOperation, "weight", weight),
                      c::span(kOperation, "input_sq_norm", input_sq_norm, input_sq_norm_size),
                      c::span(kOperation, "prune_counts", prune_counts, prune_counts_size), runs_on);
  });
}

stun_ext_status stun_ext_nm_mask(const stun_ext_const_matrix* scores, int64_t n, int64_t m, const stun_ext_mask* mask,
                                 const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "nm_mask";
    c::CallerExecutor runs_on(kOperation, executor);
    nm_mask(c::view(kOperation, "scores", scores), n, m, c::view(kOperation, "mask", mask), runs_on);
  });
}

stun_ext_status stun_ext_nm_prune(const stun_ext_matrix* weight, const float* input_sq_norm, int64_t input_sq_norm_size,
                                  int64_t n, int64_t m, int64_t* zeros, const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "nm_prune";
    c::CallerExecutor runs_on(kOperation, executor);
    int64_t& out = c::at(kOperation, "zeros", zeros);
    out = nm_prune(c::view(kOperation, "weight", weight),
                   c::span(kOperation, "input_sq_norm", input_sq_norm, input_sq_norm_size), n, m, runs_on);
  });
}

stun_ext_status stun_ext_apply_mask(const stun_ext_matrix* weight, const stun_ext_mask* mask,
                                    const stun_ext_executor* executor) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "apply_mask";
    c::CallerExecutor runs_on(kOperation, executor);
    apply_mask(c::view(kOperation, "weight", weight), c::view(kOperation, "mask", mask), runs_on);
  });
}
