// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>

#include "status.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/cpu.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/stun_ext.h"
#include "stun_ext/view.hpp"

/// From the ABI's arguments to those of the C++ functions: what can be wrong only in C is refused here, the rest there.
namespace stun_ext::c {

template <class... Parts>
[[noreturn]] void refuse(const char* operation, const Parts&... parts) {
  throw std::invalid_argument(message_of(operation, parts...));
}

/// The object that a pointer of the ABI points to.
template <class T>
T& at(const char* operation, const char* name, T* pointer) {
  if (pointer == nullptr) refuse(operation, name, " must not be null");
  return *pointer;
}

template <class T>
Span<T> span(const char* operation, const char* name, T* data, std::int64_t size) {
  if (size < 0) refuse(operation, name, " must not have a negative size, got ", size);
  if (data == nullptr && size > 0) refuse(operation, name, " must not be null, got ", size, " elements at address 0");
  return {data, static_cast<std::size_t>(size)};
}

/// A struct that can grow, by a caller whose header may be newer than this library: what only that one knows must be
/// zero. (There is no older, shorter one yet.)
template <class T>
T versioned(const char* operation, const char* name, const T* given) {
  constexpr auto kKnown = static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t kMost = 4096;  // a struct_size that was forgotten is likely beyond it
  const std::int64_t size = at(operation, name, given).struct_size;
  if (size < kKnown || size > kMost) {
    refuse(operation, name, ".struct_size must be in [", kKnown, ", ", kMost, "] (initialise it by its _INIT), got ",
           size);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::int64_t i = kKnown; i < size; ++i) {
    if (bytes[i] != 0) refuse(operation, name, " must set no field that this version does not know, got one at ", i);
  }
  return *given;
}

std::optional<DType> find_dtype(stun_ext_dtype dtype) noexcept;
std::optional<Isa> find_isa(stun_ext_isa isa) noexcept;
stun_ext_isa number_of(Isa isa) noexcept;
Linkage linkage(const char* operation, stun_ext_linkage_method method);

ConstMatrixView view(const char* operation, const char* name, const stun_ext_const_matrix* matrix);
MatrixView view(const char* operation, const char* name, const stun_ext_matrix* matrix);
MaskView view(const char* operation, const char* name, const stun_ext_mask* mask);

}  // namespace stun_ext::c
