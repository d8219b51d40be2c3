// SPDX-License-Identifier: Apache-2.0
#include "lanes_avx2.hpp"
#include "nm_lanes.hpp"

namespace stun_ext::detail {

const NmKernels nm_avx2 = nm_kernels<Lanes16, Lanes32>();

}  // namespace stun_ext::detail
