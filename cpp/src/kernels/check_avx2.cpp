// SPDX-License-Identifier: Apache-2.0
#include "check_lanes.hpp"
#include "lanes_avx2.hpp"

namespace stun_ext::detail {

const CheckKernels check_avx2 = check_kernels<Lanes16, Lanes32>();

}  // namespace stun_ext::detail
