// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/cpu.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "dispatch.hpp"
#include "stun_ext/error.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace stun_ext {
namespace detail {
namespace {

std::string cpu_model() {
#if defined(__x86_64__)
  // The brand string: three leaves of 16 characters, padded with blanks and zeros.
  char text[49] = {};
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    unsigned words[4];
    if (__get_cpuid(0x80000002u + leaf, &words[0], &words[1], &words[2], &words[3]) == 0) return {};
    std::memcpy(text + 16 * leaf, words, sizeof words);
  }
  const std::string padded(text);
  const std::size_t first = padded.find_first_not_of(' ');
  return first == std::string::npos ? std::string() : padded.substr(first, padded.find_last_not_of(' ') + 1 - first);
#else
  return {};
#endif
}

Features detect() noexcept {
  Features found;
#if defined(__x86_64__)
  // The compiler's test includes whether the operating system saves the registers.
  found.avx2 = __builtin_cpu_supports("avx2") != 0;
  found.fma = __builtin_cpu_supports("fma") != 0;
  found.avx512f = __builtin_cpu_supports("avx512f") != 0;
  found.avx512bw = __builtin_cpu_supports("avx512bw") != 0;
  found.avx512dq = __builtin_cpu_supports("avx512dq") != 0;
  found.avx512vl = __builtin_cpu_supports("avx512vl") != 0;
  found.avx512vbmi2 = __builtin_cpu_supports("avx512vbmi2") != 0;
  found.avx512vnni = __builtin_cpu_supports("avx512vnni") != 0;
  unsigned a, b, c, d;  // these two are not known by name to every compiler
  if (__get_cpuid(1, &a, &b, &c, &d) != 0) found.f16c = (c & (1u << 29)) != 0 && found.avx2;
  if (found.avx512f && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) found.avx512bf16 = (a & (1u << 5)) != 0;
  if (found.avx512bf16 && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    found.amxbf16 = (d & (1u << 22)) != 0 && (d & (1u << 24)) != 0;
  }
#elif defined(__aarch64__)
  found.neon = true;
#endif
  return found;
}

bool is_supported(Isa isa) noexcept {
  const Features& has = features();
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return has.avx2 && has.fma && has.f16c;
    case Isa::avx512:
      return has.avx2 && has.fma && has.f16c && has.avx512f && has.avx512bw && has.avx512dq && has.avx512vl;
    case Isa::neon:
      return has.neon;
  }
  return false;
}

constexpr Isa kAll[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512};  // slowest first

std::string supported_names() {
  std::string names;
  for (const Isa isa : kAll) {
    if (is_supported(isa)) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  return names;
}

Isa from_environment() {
  const char* text = std::getenv("STUN_EXT_ISA");
  if (text != nullptr && *text != '\0') {
    for (const Isa isa : kAll) {
      if (std::strcmp(text, name_of(isa)) == 0 && is_supported(isa)) return isa;
    }
    throw UnavailableError("[isa] STUN_EXT_ISA must be one of those that this processor and build support (" +
                           supported_names() + "), got \"" + text + "\"");
  }
  Isa fastest = Isa::scalar;
  for (const Isa isa : kAll) {
    if (is_supported(isa)) fastest = isa;
  }
  return fastest;
}

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

}  // namespace

const Features& features() noexcept {
  static const Features found = detect();
  return found;
}

bool can_use_tiles() noexcept {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool can = features().amxbf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return can;
#else
  return false;
#endif
}

}  // namespace detail

Isa isa() {
  const int set = detail::chosen.load(std::memory_order_relaxed);
  if (set != detail::kUnset) return static_cast<Isa>(set);
  static const Isa initial = detail::from_environment();  // tried again at the next use if it throws
  return initial;
}

void set_isa(Isa isa) {
  if (!detail::is_supported(isa)) {
    throw UnavailableError(std::string("[set_isa] isa must be one of those that this processor and build support (") +
                           detail::supported_names() + "), got " + name_of(isa));
  }
  detail::chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
}

CpuInfo cpu_info() {
  CpuInfo info;
  info.model = detail::cpu_model();
  const detail::Features& has = detail::features();
  const auto add = [&](bool present, const char* name) {
    if (present) info.features.emplace_back(name);
  };
  add(has.neon, "neon");
  add(has.avx2, "avx2");
  add(has.fma, "fma");
  add(has.f16c, "f16c");
  add(has.avx512f, "avx512f");
  add(has.avx512bw, "avx512bw");
  add(has.avx512dq, "avx512dq");
  add(has.avx512vl, "avx512vl");
  add(has.avx512vbmi2, "avx512vbmi2");
  add(has.avx512vnni, "avx512vnni");
  add(has.avx512bf16, "avx512bf16");
  add(has.amxbf16, "amxbf16");
  for (const Isa isa : detail::kAll) {
    if (detail::is_supported(isa)) info.supported.push_back(isa);
  }
  info.isa = isa();
  return info;
}

}  // namespace stun_ext
