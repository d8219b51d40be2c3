// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "aligned.hpp"

namespace stun_ext::detail {

/// Memory that the threads of an executor take turns at.
class Scratch {
 public:
  /// @param size  values for each of `threads`.
  Scratch(int threads, std::int64_t size) {
    memory_.reserve(threads * size);
    for (int thread = 0; thread < threads; ++thread) idle_.push_back(memory_.data() + thread * size);
  }

  /// What a task has of it.
  class Lease {
   public:
    explicit Lease(Scratch& scratch) : scratch_(scratch) {
      const std::lock_guard<std::mutex> lock(scratch_.mutex_);
      data_ = scratch_.idle_.back();
      scratch_.idle_.pop_back();
    }
    Lease(const Lease&) = delete;
    ~Lease() {
      const std::lock_guard<std::mutex> lock(scratch_.mutex_);
      scratch_.idle_.push_back(data_);
    }
    double* data() const noexcept { return data_; }

   private:
    Scratch& scratch_;
    double* data_;
  };

 private:
  LineBuffer memory_;
  std::mutex mutex_;
  std::vector<double*> idle_;
};

}  // namespace stun_ext::detail
