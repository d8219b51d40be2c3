// SPDX-License-Identifier: Apache-2.0
// The symbols of the CUDA library for a build without CUDA.
#include "stun_ext/cuda/runtime.hpp"

namespace stun_ext::cuda {

bool built_with_cuda() noexcept { return false; }

int device_count() noexcept { return 0; }

const char* build_info() noexcept { return "built without CUDA"; }

}  // namespace stun_ext::cuda
