// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "stun_ext/stun_ext.h"

namespace stun_ext::c {

/// The caller's executor or progress failed, or did what its contract excludes.
class CallbackError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// "[operation] parts…", the form of every message.
template <class... Parts>
std::string message_of(const char* operation, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << operation << "] ";
  (message << ... << parts);
  return message.str();
}

/// The status of the exception that is being handled; its message becomes this thread's last one.
stun_ext_status status_of_exception() noexcept;

/// Runs the body of a function of the ABI: where exceptions end and statuses begin.
template <class Body>
stun_ext_status call(Body&& body) noexcept {
  try {
    body();
    return STUN_EXT_OK;
  } catch (...) {
    return status_of_exception();
  }
}

}  // namespace stun_ext::c
