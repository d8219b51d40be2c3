// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "stun_ext/cuda/runtime.hpp"

namespace stun_ext::cuda::detail {

inline void check_cuda(const char* operation, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here, so not to be told again by the caller's next call
  throw Error(std::string("[") + operation + "] CUDA: " + cudaGetErrorString(error));
}

/// Makes the stream's device the current one for a scope.
class CurrentDevice {
 public:
  CurrentDevice(const char* operation, const Stream& stream) {
    check_cuda(operation, cudaGetDevice(&before_));
    device_ = stream.device >= 0 ? stream.device : before_;
    if (device_ != before_) check_cuda(operation, cudaSetDevice(device_));
  }
  ~CurrentDevice() {
    if (device_ != before_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  int id() const noexcept { return device_; }

 private:
  int before_ = 0;
  int device_ = 0;
};

}  // namespace stun_ext::cuda::detail
