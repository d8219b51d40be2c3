// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "stun_ext/experts.hpp"

namespace stun_ext::detail {

/// The function in place: h[0 … I) = a of the hidden row h, which has I values, or 2 I if gated.
void apply(const ExpertFunction& function, float* h, std::int64_t intermediate) noexcept;

}  // namespace stun_ext::detail
