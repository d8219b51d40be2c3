// SPDX-License-Identifier: Apache-2.0
#include "status.hpp"

#include <cstring>
#include <new>

#include "stun_ext/error.hpp"

namespace stun_ext::c {
namespace {

// An array, because a string could fail to hold the message that memory is short.
thread_local char last_message[1024] = "";

void remember(const char* message) noexcept {
  std::strncpy(last_message, message, sizeof last_message - 1);  // the last character stays 0
}

}  // namespace

stun_ext_status status_of_exception() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    remember("out of memory");
    return STUN_EXT_OUT_OF_MEMORY;
  } catch (const std::length_error&) {  // a container asked for more than its largest size
    remember("out of memory");
    return STUN_EXT_OUT_OF_MEMORY;
  } catch (const std::invalid_argument& error) {
    remember(error.what());
    return STUN_EXT_INVALID_ARGUMENT;
  } catch (const UnavailableError& error) {
    remember(error.what());
    return STUN_EXT_UNAVAILABLE;
  } catch (const CancelledError& error) {
    remember(error.what());
    return STUN_EXT_CANCELLED;
  } catch (const CallbackError& error) {
    remember(error.what());
    return STUN_EXT_CALLBACK_FAILED;
  } catch (const std::exception& error) {
    remember(error.what());
    return STUN_EXT_INTERNAL;
  } catch (...) {
    remember("an exception of unknown type");
    return STUN_EXT_INTERNAL;
  }
}

}  // namespace stun_ext::c

const char* stun_ext_last_error_message(void) noexcept { return stun_ext::c::last_message; }

const char* stun_ext_status_name(stun_ext_status status) noexcept {
  switch (status) {
    case STUN_EXT_OK:
      return "STUN_EXT_OK";
    case STUN_EXT_INVALID_ARGUMENT:
      return "STUN_EXT_INVALID_ARGUMENT";
    case STUN_EXT_UNAVAILABLE:
      return "STUN_EXT_UNAVAILABLE";
    case STUN_EXT_CANCELLED:
      return "STUN_EXT_CANCELLED";
    case STUN_EXT_OUT_OF_MEMORY:
      return "STUN_EXT_OUT_OF_MEMORY";
    case STUN_EXT_CALLBACK_FAILED:
      return "STUN_EXT_CALLBACK_FAILED";
    case STUN_EXT_INTERNAL:
      return "STUN_EXT_INTERNAL";
    default:
      return "unknown";
  }
}
