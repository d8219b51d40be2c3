// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace stun_ext::detail {
namespace {

enum class Cache { first, second };

/// Asks for the cache lines that lie `ahead` bytes beyond `bytes` bytes from `from`: the processor's own prefetching
/// ends with the page, and memory is read at its rate only if enough lines are on their way.
template <int ahead, Cache cache = Cache::first>
inline void prefetch(const void* from, std::int64_t bytes) noexcept {
  constexpr std::int64_t kLine = 64;
  for (std::int64_t b = 0; b < bytes; b += kLine) {
    __builtin_prefetch(static_cast<const char*>(from) + ahead + b, 0, cache == Cache::first ? 3 : 2);
  }
}

}  // namespace
}  // namespace stun_ext::detail
