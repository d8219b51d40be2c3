// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "stun_ext/cpu.hpp"
#include "stun_ext/error.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

TEST(Cpu, TellsWhatIsSupportedAndInUse) {
  const CpuInfo info = cpu_info();
  ASSERT_FALSE(info.supported.empty());
  EXPECT_EQ(info.supported.front(), Isa::scalar);
  EXPECT_NE(std::find(info.supported.begin(), info.supported.end(), info.isa), info.supported.end());
  EXPECT_EQ(info.isa, isa());
}

TEST(Cpu, SetIsaChangesWhatIsUsed) {
  for (const Isa each : cpu_info().supported) {
    const test::ForcedIsa forced(each);
    EXPECT_EQ(isa(), each) << name_of(each);
    EXPECT_EQ(cpu_info().isa, each);
  }
}

TEST(Cpu, RefusesWhatTheProcessorLacks) {
  const std::vector<Isa> supported = cpu_info().supported;
  for (const Isa each : {Isa::avx2, Isa::avx512, Isa::neon}) {
    if (std::find(supported.begin(), supported.end(), each) != supported.end()) continue;
    try {
      set_isa(each);
      ADD_FAILURE() << name_of(each) << " was accepted";
    } catch (const UnavailableError& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("got ") + name_of(each)), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace stun_ext
