// SPDX-License-Identifier: Apache-2.0
// The symbols of the CUDA library for a build without CUDA.
#include <string>

#include "stun_ext/cuda/mask.hpp"
#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/error.hpp"

namespace stun_ext::cuda {
namespace {

[[noreturn]] void refuse(const char* operation) {
  throw UnavailableError(std::string("[") + operation + "] stun_ext was built without CUDA");
}

}  // namespace

bool built_with_cuda() noexcept { return false; }

int device_count() noexcept { return 0; }

const char* build_info() noexcept { return "built without CUDA"; }

void wanda_mask(const Batch<ConstMatrixView>&, const float*, const PruneCounts&, const Batch<MaskView>&, MaskStatus*,
                Stream) {
  refuse("wanda_mask");
}

void wanda_prune(const Batch<MatrixView>&, const float*, const PruneCounts&, MaskStatus*, Stream) {
  refuse("wanda_prune");
}

void nm_mask(const Batch<ConstMatrixView>&, std::int64_t, std::int64_t, const Batch<MaskView>&, MaskStatus*, Stream) {
  refuse("nm_mask");
}

void nm_prune(const Batch<MatrixView>&, const float*, std::int64_t, std::int64_t, MaskStatus*, Stream) {
  refuse("nm_prune");
}

}  // namespace stun_ext::cuda
