// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// What operator new is asked for, in every form of it: counted_memory.cpp replaces them for the program that it is
/// linked into.
namespace stun_ext::test {

/// Allocations so far.
std::int64_t allocations() noexcept;

/// Bytes that are allocated now: those that were asked for, without what the allocator adds.
std::int64_t live_bytes() noexcept;

/// The most that live_bytes() has been since the last call of restart_peak().
std::int64_t peak_bytes() noexcept;
void restart_peak() noexcept;

}  // namespace stun_ext::test
