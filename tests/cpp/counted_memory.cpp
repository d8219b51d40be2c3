// SPDX-License-Identifier: Apache-2.0
#include "counted_memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> count{0}, live{0}, peak{0};

void add(std::int64_t bytes) noexcept {
  count.fetch_add(1, std::memory_order_relaxed);
  const std::int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

/// In front of every block lies its size, in as much room as keeps the block aligned.
std::size_t room_for_size(std::size_t alignment) noexcept { return std::max(alignment, alignof(std::max_align_t)); }

void* allocate(std::size_t size, std::size_t alignment) {
  const std::size_t room = room_for_size(alignment);
  if (size > SIZE_MAX - 2 * room) throw std::bad_alloc();
  auto* block = static_cast<char*>(std::aligned_alloc(room, (room + size + room - 1) / room * room));
  if (block == nullptr) throw std::bad_alloc();
  *reinterpret_cast<std::size_t*>(block) = size;
  add(static_cast<std::int64_t>(size));
  return block + room;
}

void release(void* memory, std::size_t alignment) noexcept {
  if (memory == nullptr) return;
  char* block = static_cast<char*>(memory) - room_for_size(alignment);
  live.fetch_sub(static_cast<std::int64_t>(*reinterpret_cast<std::size_t*>(block)), std::memory_order_relaxed);
  std::free(block);
}

}  // namespace

// Arrays' forms of new and delete call these. The forms that do not throw would, too, but a sanitizer brings its own.
void* operator new(std::size_t size) { return allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return allocate(size, 1);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { release(memory, 1); }
void operator delete(void* memory) noexcept { release(memory, 1); }
void operator delete(void* memory, std::size_t) noexcept { release(memory, 1); }
void operator delete(void* memory, std::align_val_t alignment) noexcept {
  release(memory, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
  release(memory, static_cast<std::size_t>(alignment));
}

namespace stun_ext::test {

std::int64_t allocations() noexcept { return count.load(); }
std::int64_t live_bytes() noexcept { return live.load(); }
std::int64_t peak_bytes() noexcept { return peak.load(); }
void restart_peak() noexcept { peak.store(live.load()); }

}  // namespace stun_ext::test
