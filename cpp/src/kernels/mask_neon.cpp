// SPDX-License-Identifier: Apache-2.0
#include "lanes_neon.hpp"
#include "mask_lanes.hpp"

namespace stun_ext::detail {

const MaskKernels mask_neon = MaskLanes<Lanes16, Lanes32>::kernels();

}  // namespace stun_ext::detail
