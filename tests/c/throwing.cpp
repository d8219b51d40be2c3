// SPDX-License-Identifier: Apache-2.0
// A caller that breaks the rule that callbacks do not throw: the exception must end at the ABI all the same.
#include "throwing.h"

#include <new>
#include <stdexcept>
#include <string>

stun_ext_status throwing_parallel_for(void* context, int64_t, int64_t, stun_ext_task, void*) {
  switch (*static_cast<const int*>(context)) {
    case THROWS_BAD_ALLOC:
      throw std::bad_alloc();
    case THROWS_LENGTH_ERROR:
      throw std::length_error("vector");
    case THROWS_LONG_ERROR:
      throw std::runtime_error(std::string(5000, 'x'));
    default:
      throw 42;
  }
}
