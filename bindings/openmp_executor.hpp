// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stun_ext/executor.hpp"

namespace stun_ext::python {

/// For products between two of torch's operations: torch's own threads where it has OpenMP's, else default_executor().
///
/// OpenMP's threads spin for some milliseconds after each operation of torch, so that threads of our own would compete
/// with them for the processors: an expert block between attention layers took twice as long. num_threads() of them are
/// used, as far as torch.get_num_threads() goes. A process that was forked from one that had used them has none, and
/// gets default_executor().
Executor& openmp_executor() noexcept;

}  // namespace stun_ext::python
