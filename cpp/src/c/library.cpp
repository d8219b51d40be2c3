// SPDX-License-Identifier: Apache-2.0
// The library and the processor.
#include <algorithm>
#include <optional>
#include <string>

#include "arguments.hpp"
#include "status.hpp"
#include "stun_ext/cpu.hpp"
#include "stun_ext/dtype.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/stun_ext.h"
#include "stun_ext/version.hpp"

namespace stun_ext::c {
namespace {

struct Processor {
  std::string model;
  std::string features;
};

Isa isa(const char* operation, stun_ext_isa number) {
  const std::optional<Isa> isa = find_isa(number);
  if (!isa) refuse(operation, "isa must be one of the STUN_EXT_ instruction sets, got ", number);
  return *isa;
}

/// Made at the first use, so that the strings stay where they are.
const Processor& processor() {
  static const Processor made = [] {
    const CpuInfo info = cpu_info();
    std::string features;
    for (const std::string& feature : info.features) features += (features.empty() ? "" : " ") + feature;
    return Processor{info.model, features};
  }();
  return made;
}

}  // namespace
}  // namespace stun_ext::c

using namespace stun_ext;

const char* stun_ext_version(void) noexcept { return STUN_EXT_VERSION; }

const char* stun_ext_dtype_name(stun_ext_dtype dtype) noexcept {
  const auto found = c::find_dtype(dtype);
  return found ? name_of(*found) : "unknown";
}

int64_t stun_ext_dtype_size(stun_ext_dtype dtype) noexcept {
  const auto found = c::find_dtype(dtype);
  return found ? static_cast<int64_t>(size_of(*found)) : 0;
}

const char* stun_ext_isa_name(stun_ext_isa isa) noexcept {
  const auto found = c::find_isa(isa);
  return found ? name_of(*found) : "unknown";
}

stun_ext_status stun_ext_cpu_model(const char** model) noexcept {
  return c::call([&] { c::at("cpu_model", "model", model) = c::processor().model.c_str(); });
}

stun_ext_status stun_ext_cpu_features(const char** features) noexcept {
  return c::call([&] { c::at("cpu_features", "features", features) = c::processor().features.c_str(); });
}

stun_ext_status stun_ext_isa_supported(stun_ext_isa isa, int32_t* supported) noexcept {
  return c::call([&] {
    constexpr const char* kOperation = "isa_supported";
    int32_t& out = c::at(kOperation, "supported", supported);
    const Isa wanted = c::isa(kOperation, isa);
    const CpuInfo info = cpu_info();
    out = std::find(info.supported.begin(), info.supported.end(), wanted) != info.supported.end() ? 1 : 0;
  });
}

stun_ext_status stun_ext_get_isa(stun_ext_isa* isa) noexcept {
  return c::call([&] { c::at("get_isa", "isa", isa) = c::number_of(stun_ext::isa()); });
}

stun_ext_status stun_ext_set_isa(stun_ext_isa isa) noexcept {
  return c::call([&] { set_isa(c::isa("set_isa", isa)); });
}

int32_t stun_ext_num_threads(void) noexcept { return num_threads(); }

stun_ext_status stun_ext_set_num_threads(int32_t count) noexcept {
  return c::call([&] { set_num_threads(count); });
}
