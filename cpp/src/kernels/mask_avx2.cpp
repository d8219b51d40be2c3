// SPDX-License-Identifier: Apache-2.0
#include "lanes_avx2.hpp"
#include "mask_lanes.hpp"

namespace stun_ext::detail {

const MaskKernels mask_avx2 = MaskLanes<Lanes16, Lanes32>::kernels();

}  // namespace stun_ext::detail
