// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

#pragma GCC visibility push(default)
namespace stun_ext {

// Every public function checks its arguments once, before any work, and throws std::invalid_argument with a message
// of the form "[operation] what is legal, got the offending value". Nothing has been written when it throws.

/// The operation exists but this build or this machine cannot run it (for instance: built without CUDA).
class UnavailableError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A run was stopped by its Progress.
class CancelledError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace stun_ext
#pragma GCC visibility pop
