// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "stun_ext/cluster.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/progress.hpp"
#include "stun_ext/stun_ext.h"

namespace stun_ext::c {

/// The caller's executor for the C++ functions; the default one where the caller gave none. It checks that the work was
/// done as agreed, since ranges left out would be wrong results, and throws CallbackError if not.
class CallerExecutor final : public Executor {
 public:
  CallerExecutor(const char* operation, const stun_ext_executor* given);

  int concurrency() const noexcept override;
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override;

 private:
  const char* operation_;
  bool is_given_;
  stun_ext_executor executor_{};
};

/// The caller's options, with its progress callback as a Progress; lives as long as the call.
class CallerOptions final : private Progress {
 public:
  CallerOptions(const char* operation, const stun_ext_linkage_options* given);
  CallerOptions(const CallerOptions&) = delete;  // get() points to this one
  CallerOptions& operator=(const CallerOptions&) = delete;

  const LinkageOptions& get() const noexcept { return options_; }

 private:
  bool update(double fraction) override;

  const char* operation_;
  stun_ext_linkage_options given_;
  LinkageOptions options_;
};

}  // namespace stun_ext::c
