// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "stun_ext/cpu.hpp"
#include "stun_ext/error.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

TEST(Cpu, TellsWhatIsSupportedAndInUse) {
  const CpuInfo info = cpu_info();
  ASSERT_FALSE(info.supported.empty());
  if (const char* name = std::getenv("STUN_EXT_ISA")) {
    EXPECT_STREQ(name_of(info.isa), name);
  }
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

#if defined(__linux__)
// The variable is read once in a process, so this program is started again: main() asks for the instruction set.
void start_with_isa(const char* name) {
  setenv("STUN_EXT_ISA", name, 1);
  execl("/proc/self/exe", "stun_ext_tests", "--gtest_filter=Cpu.TellsWhatIsSupportedAndInUse", nullptr);
}

TEST(Cpu, TheEnvironmentForcesOrRefuses) {
  std::string names;
  for (const Isa each : cpu_info().supported) {
    EXPECT_EXIT(start_with_isa(name_of(each)), testing::ExitedWithCode(EXIT_SUCCESS), "") << name_of(each);
    names += (names.empty() ? "" : ", ") + std::string(name_of(each));
  }
  const std::string legal =
      "\\[isa\\] STUN_EXT_ISA must be one of those that this processor and build support \\(" + names + "\\), got ";
  for (const char* name : {"nonsense", "AVX2", "avx2 "}) {
    EXPECT_EXIT(start_with_isa(name), testing::ExitedWithCode(EXIT_FAILURE), legal + '"' + name + '"');
  }
  for (const Isa each : {Isa::avx2, Isa::avx512, Isa::neon}) {
    if (names.find(name_of(each)) != std::string::npos) continue;
    EXPECT_EXIT(start_with_isa(name_of(each)), testing::ExitedWithCode(77), legal + '"' + name_of(each) + '"');
  }
}
#endif

}  // namespace
}  // namespace stun_ext
