// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <optional>

#include "mask_references.hpp"
#include "stun_ext/stun_ext.h"

/// Arguments of the C ABI, of which any may be wrong, and what every call owes its caller all the same.
namespace stun_ext::fuzz {

inline stun_ext_dtype number_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return STUN_EXT_FLOAT32;
    case DType::f16:
      return STUN_EXT_FLOAT16;
    case DType::bf16:
      return STUN_EXT_BFLOAT16;
    case DType::f64:
      return STUN_EXT_FLOAT64;
    case DType::i64:
      return STUN_EXT_INT64;
  }
  return 0;
}

/// An executor of the caller's own that keeps its contract or breaks it, on the thread that calls.
class CallersExecutor {
 public:
  enum class Kind { honest, stubborn, leaves_out, repeats, leaves_range, empty_range, fails };

  explicit CallersExecutor(Input& input)
      : kind_(input.ConsumeBool() ? Kind::honest : static_cast<Kind>(input.ConsumeIntegralInRange(0, 6))),
        most_(input.ConsumeIntegralInRange(1, 50)),
        at_(input.ConsumeIntegralInRange(0, 6)) {}

  /// It has broken its contract: the operation must have noticed.
  bool has_failed() const { return has_failed_; }

  static stun_ext_status parallel_for(void* context, std::int64_t count, std::int64_t grain, stun_ext_task task,
                                      void* task_context) {
    return static_cast<CallersExecutor*>(context)->run(
        count, grain, [&](std::int64_t begin, std::int64_t end) { return task(task_context, begin, end); });
  }

 private:
  template <class Task>
  stun_ext_status run(std::int64_t count, std::int64_t grain, Task&& task) {
    require(count > 0 && grain > 0, "there is work in a parallel_for");
    const bool breaks = kind_ > Kind::stubborn && calls_++ == at_;
    for (std::int64_t end = count; end > 0;) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - std::min(grain, most_));
      stun_ext_status status = STUN_EXT_OK;
      if (breaks && end == count) {
        has_failed_ = true;
        if (kind_ == Kind::leaves_out) status = STUN_EXT_OK;
        if (kind_ == Kind::repeats) status = task(begin, end) == STUN_EXT_OK ? task(begin, end) : STUN_EXT_INTERNAL;
        if (kind_ == Kind::leaves_range) status = task(begin, count + 1);
        if (kind_ == Kind::empty_range) status = task(begin, begin);
        if (kind_ == Kind::fails) return task(begin, end) == STUN_EXT_OK ? 77 : STUN_EXT_OK;
      } else {
        status = task(begin, end);
      }
      if (status != STUN_EXT_OK && kind_ != Kind::stubborn) return STUN_EXT_OK;  // the library remembers it
      end = begin;
    }
    return STUN_EXT_OK;
  }

  Kind kind_;
  std::int64_t most_;
  int at_, calls_ = 0;  ///< the parallel_for in which it breaks its contract
  bool has_failed_ = false;
};

/// One call: makes its arguments from the input, notes what is wrong with them, and judges how it ended.
class Call {
 public:
  Call(Input& input, std::string operation)
      : input_(input), operation_(std::move(operation)), may_be_wrong_(input.ConsumeBool()) {}

  Input& input() { return input_; }
  /// Whether the next argument is made wrong.
  bool spoils(int of = 24) { return may_be_wrong_ && input_.ConsumeIntegralInRange(0, of) == 0; }
  /// What the library has to refuse.
  void set_wrong() { is_wrong_ = true; }
  /// Whether no argument was changed.
  bool is_honest() const { return !may_be_wrong_; }

  template <class T>
  T* pointer(T* honest) {
    if (!spoils()) return honest;
    set_wrong();
    return nullptr;
  }

  /// Of `honest` elements; `least`: what is refused below, and claims nothing that is not there between.
  std::int64_t size(std::int64_t honest, bool is_exact = true) {
    if (!spoils()) return honest;
    auto size = input_.ConsumeBool() ? input_.ConsumeIntegralInRange<std::int64_t>(-2, honest + 2)
                                     : input_.ConsumeIntegral<std::int64_t>();
    if (!is_exact) size = std::min(size, honest);
    if (is_exact ? size != honest : size < 0) set_wrong();
    return size;
  }

  /// Of `honest` elements, or of none, which is as legal.
  std::int64_t size_or_none(std::int64_t honest) {
    if (!spoils()) return honest;
    const auto size = input_.ConsumeBool() ? input_.ConsumeIntegralInRange<std::int64_t>(-2, honest + 2)
                                           : input_.ConsumeIntegral<std::int64_t>();
    if (size != honest && size != 0) set_wrong();
    return size;
  }

  std::int32_t number(std::int32_t honest, std::int32_t last) {
    if (!spoils()) return honest;
    const auto number = input_.ConsumeIntegral<std::int32_t>();
    if (number < 1 || number > last) set_wrong();
    return number;
  }

  const stun_ext_const_matrix* matrix(const AnyMatrix& matrix) {
    return pointer(&const_matrices_.emplace_back(filled<stun_ext_const_matrix>(matrix)));
  }
  const stun_ext_matrix* out(const AnyMatrix& matrix) {
    return pointer(&matrices_.emplace_back(filled<stun_ext_matrix>(matrix)));
  }
  /// A matrix among others, which has no pointer of its own.
  stun_ext_const_matrix layer(const AnyMatrix& matrix) { return filled<stun_ext_const_matrix>(matrix); }
  const stun_ext_mask* mask(const AnyMask& mask) {
    const MaskView view = may_be_wrong_ ? maybe_spoilt_mask(input_, mask.view()) : mask.view();
    return pointer(&masks_.emplace_back(stun_ext_mask{view.data, view.rows, view.cols, view.row_stride}));
  }

  const stun_ext_executor* executor() {
    if (input_.ConsumeBool()) return nullptr;
    executor_.emplace(input_);
    stun_ext_executor made = STUN_EXT_EXECUTOR_INIT;
    made.concurrency = input_.ConsumeIntegralInRange(1, 5);
    made.context = &*executor_;
    made.parallel_for = CallersExecutor::parallel_for;
    if (spoils()) {
      made.concurrency = input_.ConsumeIntegral<std::int64_t>() % 7 - 6;  // not many: memory is planned for each
      if (made.concurrency < 1) set_wrong();
    }
    if (spoils()) {
      made.parallel_for = nullptr;
      set_wrong();
    }
    return sized(made, executor_memory_);
  }

  /// @param n  observations
  const stun_ext_linkage_options* options(std::int64_t n, bool has_stop) {
    stun_ext_linkage_options made = STUN_EXT_LINKAGE_OPTIONS_INIT;
    if (has_stop && input_.ConsumeBool()) made.n_clusters = input_.ConsumeIntegralInRange<std::int64_t>(1, n);
    if (has_stop && input_.ConsumeBool()) made.height = std::abs(pick_double(input_));
    if (input_.ConsumeBool()) made.memory_limit = input_.ConsumeIntegralInRange<std::int64_t>(0, 1 << 22);
    if (std::isnan(made.height)) set_wrong();
    if (spoils()) made.memory_limit = input_.ConsumeIntegral<std::int64_t>();
    if (spoils()) made.n_clusters = input_.ConsumeIntegral<std::int64_t>();
    if (spoils()) made.height = pick_double(input_);
    if (made.memory_limit < 0 || made.n_clusters < 1 || made.n_clusters > n || std::isnan(made.height)) set_wrong();
    if (input_.ConsumeIntegralInRange(0, 3) == 0) {
      constexpr stun_ext_status statuses[] = {STUN_EXT_OK, STUN_EXT_CANCELLED, STUN_EXT_INTERNAL, -3};
      progress_status_ = statuses[input_.ConsumeIntegralInRange(0, 3)];
      made.progress = [](void* status, double fraction) {
        require(fraction >= 0.0 && fraction <= 1.0, "the fraction is one");
        return *static_cast<stun_ext_status*>(status);
      };
      made.progress_context = &progress_status_;
    }
    made_options_ = made;
    return sized(made, options_memory_);
  }
  const stun_ext_linkage_options& made_options() const { return made_options_; }

  /// Judges how it ended; whether it was well.
  bool succeeded(stun_ext_status status) {
    const std::string message = stun_ext_last_error_message();
    const bool executor_failed = executor_ && executor_->has_failed();
    if (status == STUN_EXT_OK) {
      require(!is_wrong_, operation_ + " refuses what is wrong");
      require(!executor_failed, operation_ + " notices that the executor broke its contract");
      return true;
    }
    require(message.rfind("[" + operation_ + "] ", 0) == 0, operation_ + " names itself: " + message);
    require(message.size() > operation_.size() + 10 && message.size() < 1024, "says what is wrong: " + message);
    require(stun_ext_status_name(status) != std::string("unknown"), "a status that there is");
    const bool is_of_progress = status == progress_status_ || status == STUN_EXT_CALLBACK_FAILED;
    require(status == STUN_EXT_INVALID_ARGUMENT || (status == STUN_EXT_CALLBACK_FAILED && executor_failed) ||
                (progress_status_ != STUN_EXT_OK && is_of_progress),
            std::string("a status for what was wrong: ") + stun_ext_status_name(status) + ", " + message);
    if (is_wrong_) require(status == STUN_EXT_INVALID_ARGUMENT, operation_ + " checks its arguments before any work");
    is_refused_ = status == STUN_EXT_INVALID_ARGUMENT && !executor_failed;
    return false;
  }
  /// Arguments were refused before any work: the outputs are as they were.
  bool is_refused() const { return is_refused_; }
  /// Its progress or executor can end it.
  bool may_end_early() const { return progress_status_ != STUN_EXT_OK || executor_; }

 private:
  template <class Matrix>
  Matrix filled(const AnyMatrix& matrix) {
    const MatrixView view = may_be_wrong_ ? maybe_spoilt(input_, matrix.view()) : matrix.view();
    Matrix made = {view.data, view.rows, view.cols, view.row_stride, view.col_stride, number_of(view.dtype), 0};
    if (made.dtype == 0) set_wrong();
    if (spoils()) {
      made.dtype = input_.ConsumeIntegral<std::int32_t>();
      if (made.dtype >= STUN_EXT_FLOAT32 && made.dtype <= STUN_EXT_INT64) made.dtype = -made.dtype;  // no other memory
      set_wrong();
    }
    if (spoils()) {
      made.reserved = input_.ConsumeIntegral<std::int32_t>();
      if (made.reserved != 0) set_wrong();
    }
    return made;
  }

  /// With a struct_size that is right, wrong, or of a later version that has more fields, which are there.
  template <class T>
  const T* sized(T made, std::vector<std::int64_t>& memory) {
    constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
    if (spoils(8)) {
      made.struct_size = input_.ConsumeBool() ? input_.ConsumeIntegralInRange<std::int64_t>(0, 5000)
                                              : input_.ConsumeIntegral<std::int64_t>();
    }
    const bool is_later = made.struct_size > kSize && made.struct_size <= 4096;
    if (made.struct_size != kSize && !is_later) set_wrong();
    memory.assign(static_cast<std::size_t>((is_later ? made.struct_size : kSize) + 7) / 8, 0);
    std::memcpy(memory.data(), &made, sizeof made);
    if (is_later && input_.ConsumeBool()) {
      reinterpret_cast<char*>(memory.data())[input_.ConsumeIntegralInRange(kSize, made.struct_size - 1)] = 1;
      set_wrong();
    }
    return reinterpret_cast<const T*>(memory.data());
  }

  Input& input_;
  std::string operation_;
  bool may_be_wrong_;
  bool is_wrong_ = false, is_refused_ = false;
  std::deque<stun_ext_const_matrix> const_matrices_;
  std::deque<stun_ext_matrix> matrices_;
  std::deque<stun_ext_mask> masks_;
  std::optional<CallersExecutor> executor_;
  stun_ext_status progress_status_ = STUN_EXT_OK;
  stun_ext_linkage_options made_options_{};
  std::vector<std::int64_t> executor_memory_, options_memory_;
};

}  // namespace stun_ext::fuzz
