// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "stun_ext/cuda/runtime.hpp"

#define STUN_EXT_TEXT_OF(value) #value
#define STUN_EXT_TEXT(value) STUN_EXT_TEXT_OF(value)

namespace stun_ext::cuda {

bool built_with_cuda() noexcept { return true; }

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no device is an answer here, not an error for the caller's next CUDA call
    return 0;
  }
  return count;
}

const char* build_info() noexcept {
  return STUN_EXT_TEXT(__CUDACC_VER_MAJOR__) "." STUN_EXT_TEXT(__CUDACC_VER_MINOR__);
}

}  // namespace stun_ext::cuda
