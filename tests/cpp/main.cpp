// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "stun_ext/cpu.hpp"
#include "stun_ext/error.hpp"

namespace {

constexpr int kSkipped = 77;  // what ctest reports as skipped, by the tests' SKIP_RETURN_CODE

bool is_known(const std::string& name) {
  using stun_ext::Isa;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::neon}) {
    if (name == name_of(isa)) return true;
  }
  return false;
}

}  // namespace

// ctest runs every test once for each instruction set, by STUN_EXT_ISA: those that this processor lacks are skipped.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    stun_ext::isa();
  } catch (const stun_ext::UnavailableError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return is_known(std::getenv("STUN_EXT_ISA")) ? kSkipped : EXIT_FAILURE;
  }
  return RUN_ALL_TESTS();
}
