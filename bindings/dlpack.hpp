// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// The DLPack binary interface, as far as a consumer of host and CUDA tensors needs it (dmlc.github.io/dlpack, versions
/// 0.8 and 1.x). Declared here so that the build needs no further header; layouts are fixed by that specification.
namespace stun_ext::python::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t id;
};

constexpr std::int32_t kCpu = 1;
constexpr std::int32_t kCuda = 2;
constexpr std::int32_t kCudaHost = 3;  // pinned host memory

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

constexpr std::uint8_t kInt = 0;
constexpr std::uint8_t kUInt = 1;
constexpr std::uint8_t kFloat = 2;
constexpr std::uint8_t kBfloat = 4;
constexpr std::uint8_t kBool = 6;

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means row-major without gaps
  std::uint64_t byte_offset;
};

/// What a capsule named "dltensor" holds.
struct ManagedTensor {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

constexpr std::uint64_t kReadOnly = 1;

/// What a capsule named "dltensor_versioned" holds. The first three members are the same in every major version.
struct ManagedTensorVersioned {
  Version version;
  void* manager_context;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace stun_ext::python::dlpack
