// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "stun_ext/error.hpp"
#include "stun_ext/progress.hpp"

namespace stun_ext::detail {

/// Tells a Progress how far an operation is, from the operation's own thread and not too often.
class Ticker {
 public:
  Ticker(const char* operation, Progress* progress)
      : operation_(operation), progress_(progress), owner_(std::this_thread::get_id()) {}

  /// The part of the whole that tick's fraction is of from now on.
  void set_span(double begin, double end) noexcept {
    begin_ = begin;
    end_ = end;
  }

  /// From any thread; of other threads than the owner's it does nothing. Throws CancelledError if asked to stop.
  void tick(double fraction) {
    if (progress_ == nullptr || std::this_thread::get_id() != owner_) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    told_ = std::max(told_, std::min(begin_ + (end_ - begin_) * fraction, 1.0));
    if (!progress_->update(told_)) {
      throw CancelledError(std::string("[") + operation_ + "] stopped by its progress");
    }
  }

 private:
  const char* operation_;
  Progress* progress_;
  std::thread::id owner_;
  std::chrono::steady_clock::time_point last_;
  double begin_ = 0.0, end_ = 1.0, told_ = 0.0;
};

}  // namespace stun_ext::detail
