// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace stun_ext::cuda {

/// Whether this build holds the CUDA library.
bool built_with_cuda() noexcept;

/// CUDA devices this process can use: 0 without a driver, without a device, or if built without CUDA.
int device_count() noexcept;

/// "13.0" for a build with the CUDA 13.0 runtime; "built without CUDA" otherwise.
const char* build_info() noexcept;

}  // namespace stun_ext::cuda
