// SPDX-License-Identifier: Apache-2.0
#pragma once

#pragma GCC visibility push(default)
namespace stun_ext {

/// Where a long operation tells how far it is, and asks whether to go on.
class Progress {
 public:
  virtual ~Progress() = default;

  /// Called from the thread that called the operation, a few times a second at most.
  /// @param fraction  of the work done, an estimate in [0, 1] that does not decrease.
  /// @return          false to stop: the operation throws CancelledError. It may also throw.
  virtual bool update(double fraction) = 0;
};

}  // namespace stun_ext
#pragma GCC visibility pop
