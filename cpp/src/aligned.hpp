// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace stun_ext::detail {

constexpr std::align_val_t kCacheLine{64};

/// Memory that starts a cache line, so that no vector load or store of an array from its start crosses one.
template <class T>
struct CacheLineAllocator {
  using value_type = T;

  CacheLineAllocator() noexcept = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kCacheLine)); }
  void deallocate(T* data, std::size_t) noexcept { ::operator delete(data, kCacheLine); }
};
template <class T, class U>
bool operator==(const CacheLineAllocator<T>&, const CacheLineAllocator<U>&) noexcept {
  return true;
}
template <class T, class U>
bool operator!=(const CacheLineAllocator<T>&, const CacheLineAllocator<U>&) noexcept {
  return false;
}

template <class T>
using AlignedVector = std::vector<T, CacheLineAllocator<T>>;

/// Memory that starts on a cache line, is not initialised and only grows.
class LineBuffer {
 public:
  double* data() const noexcept { return data_.get(); }
  void reserve(std::int64_t size) {
    if (size <= size_) return;
    data_.reset();
    size_ = 0;
    data_.reset(new (kCacheLine) double[static_cast<std::size_t>(size)]);
    size_ = size;
  }

 private:
  struct Free {
    void operator()(double* data) const noexcept { ::operator delete[](data, kCacheLine); }
  };
  std::unique_ptr<double[], Free> data_;
  std::int64_t size_ = 0;
};

/// Bytes that start on a cache line and are not initialised.
class LineBytes {
 public:
  explicit LineBytes(std::int64_t size) : data_(::operator new(static_cast<std::size_t>(size), kCacheLine)) {}

  void* data() const noexcept { return data_.get(); }
  template <class T>
  T* as() const noexcept {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* data) const noexcept { ::operator delete(data, kCacheLine); }
  };
  std::unique_ptr<void, Free> data_;
};

}  // namespace stun_ext::detail
