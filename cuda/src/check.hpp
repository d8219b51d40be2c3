// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "stun_ext/cuda/mask.hpp"

namespace stun_ext::cuda::detail {

/// Throws std::invalid_argument with "[operation] parts…".
template <class... Parts>
[[noreturn]] void fail(const char* operation, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << operation << "] ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// All of these throw std::invalid_argument; what they accept is in the public headers.
void check_weights(const char* operation, const char* name, const Batch<ConstMatrixView>& weight, bool writable);
void check_mask(const char* operation, const Batch<MaskView>& mask, const Batch<ConstMatrixView>& weight);
void check_counts(const char* operation, const PruneCounts& counts, std::int64_t cols);
void check_pattern(const char* operation, const char* name, std::int64_t cols, std::int64_t n, std::int64_t m);
void check_status(const char* operation, const MaskStatus* status);

}  // namespace stun_ext::cuda::detail
