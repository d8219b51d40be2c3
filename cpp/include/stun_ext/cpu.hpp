// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace stun_ext {

/// Instruction sets that the library has kernels for. Every one gives the same decisions, bit for bit.
enum class Isa : std::uint8_t {
  scalar,  ///< what the compiler makes of portable code
  avx2,    ///< AVX2, FMA and F16C
  avx512,  ///< AVX-512 F, BW, DQ and VL; BF16, VBMI2 and AMX are used where a kernel has a use for them
  neon     ///< AArch64's base, where the compiler vectorises portable code too: kernels only where that is not enough
};

/// "scalar", "avx2", "avx512" or "neon".
constexpr const char* name_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
  }
  return "unknown";
}

/// What the library sees of the processor it runs on.
struct CpuInfo {
  std::string model;                  ///< the processor's own name, empty where it has none
  std::vector<std::string> features;  ///< those of its instruction set extensions that the library asks about
  std::vector<Isa> supported;         ///< usable here and in this build, from the slowest to the fastest
  Isa isa;                            ///< in use
};

/// @throws UnavailableError as isa().
CpuInfo cpu_info();

/// The instruction set in use: the last set_isa, else the environment's STUN_EXT_ISA ("scalar", "avx2", …; read at the
/// first use), else the fastest one supported.
/// @throws UnavailableError if STUN_EXT_ISA names something unknown, or something this processor or build lacks. Every
///         operation that chooses between kernels (distances, rows, scores and masks) throws it then.
Isa isa();

/// Changes it for the whole process: for tests and benchmarks. Calls that are running finish as they began.
/// @throws UnavailableError if it is not supported.
void set_isa(Isa isa);

}  // namespace stun_ext
#pragma GCC visibility pop
