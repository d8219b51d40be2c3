// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "stun_ext/cuda/runtime.hpp"
#include "support.hpp"

namespace stun_ext::cuda {
namespace {

TEST(CudaRuntime, TellsWhatTheBuildHolds) {
  const std::string info = build_info();
  if (built_with_cuda()) {
    EXPECT_NE(info.find('.'), std::string::npos);
    EXPECT_GE(device_count(), 0);  // without a driver: an answer, no exception and no exit
  } else {
    EXPECT_EQ(info, "built without CUDA");
    EXPECT_EQ(device_count(), 0);
  }
}

}  // namespace
}  // namespace stun_ext::cuda
