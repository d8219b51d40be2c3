// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace stun_ext::cuda {

/// Whether this build holds the CUDA library.
bool built_with_cuda() noexcept;

/// CUDA devices this process can use: 0 without a driver, without a device, or if built without CUDA.
int device_count() noexcept;

/// "13.0" for a build with the CUDA 13.0 runtime; "built without CUDA" otherwise.
const char* build_info() noexcept;

/// Where work is queued: a cudaStream_t (null: the default stream) and the device it belongs to (-1: the current one).
///
/// Functions that take a stream return once their kernels are queued. They neither wait for the device nor allocate on
/// it, so they may be captured into a graph. Without CUDA they throw UnavailableError.
struct Stream {
  void* handle = nullptr;
  int device = -1;
};

/// CUDA refused a call or a kernel launch; the message names the operation and gives CUDA's own text. Errors of earlier
/// work that CUDA reports late can surface here too.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace stun_ext::cuda
