// SPDX-License-Identifier: Apache-2.0
// Links the CUDA library and the core, with or without a device. Usage: cuda BUILT_WITH_CUDA (0 or 1)
#include <cstdio>
#include <cstdlib>

#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/executor.hpp"

int main(int argc, char** argv) {
  const bool expected = argc > 1 && std::atoi(argv[1]) != 0;
  std::printf("CUDA: %s, %d devices; %d threads\n", stun_ext::cuda::build_info(), stun_ext::cuda::device_count(),
              stun_ext::num_threads());
  return stun_ext::cuda::built_with_cuda() == expected ? 0 : 1;
}
