// SPDX-License-Identifier: Apache-2.0
#include "lanes_neon.hpp"
#include "nm_lanes.hpp"

namespace stun_ext::detail {

const NmKernels nm_neon = nm_kernels<Lanes16, Lanes32>();

}  // namespace stun_ext::detail
