// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpp/support.hpp"

/// What the fuzzers share. A fuzzer makes arguments of any kind in memory of its own, never claims memory that it does
/// not have, and then demands more than that nothing crashes: what a call returns has to be what its header says.
namespace stun_ext::fuzz {

using Input = FuzzedDataProvider;

/// Ends the program, which libFuzzer reports with the input that did it.
inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what.c_str());
  std::abort();
}

/// Whether the call returns. If not it throws std::invalid_argument in the name of the operation, or the fuzzer ends.
template <class Call>
bool accepts(const std::string& operation, Call&& call) {
  try {
    call();
    return true;
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    require(message.rfind("[" + operation + "] ", 0) == 0, "names its operation: " + message);
    return false;
  }
}

/// Runs on the caller's thread, in ranges of a size of its own and from the last one to the first.
class Splitting final : public Executor {
 public:
  explicit Splitting(Input& input)
      : concurrency_(input.ConsumeIntegralInRange(1, 5)), most_(input.ConsumeIntegralInRange(1, 50)) {}
  int concurrency() const noexcept override { return concurrency_; }
  void parallel_for(std::int64_t count, std::int64_t grain, RangeTask task) override {
    for (std::int64_t end = count; end > 0;) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - std::min(grain, most_));
      task(begin, end);
      end = begin;
    }
  }

 private:
  int concurrency_;
  std::int64_t most_;
};

/// Mostly small, sometimes beyond the vectors and tiles of the kernels.
inline std::int64_t pick_size(Input& input, std::int64_t small, std::int64_t large) {
  return input.ConsumeIntegralInRange<std::int64_t>(0, input.ConsumeIntegralInRange(0, 15) == 0 ? large : small);
}

/// All of them, and now and then a number that is none.
inline DType pick_dtype(Input& input) { return static_cast<DType>(input.ConsumeIntegralInRange(0, 5)); }

inline double pick_double(Input& input) {
  if (input.ConsumeBool()) return input.ConsumeIntegralInRange(-4, 4);
  const auto bits = input.ConsumeIntegral<std::uint64_t>();
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// A matrix of any element type, strides and values, in memory that ends where its elements do.
class AnyMatrix {
 public:
  AnyMatrix(Input& input, DType dtype, std::int64_t rows, std::int64_t cols, bool may_overlap = true) {
    view_ = {nullptr, rows, cols, cols, 1, dtype};
    const std::int64_t gap = input.ConsumeIntegralInRange(0, 3);
    switch (input.ConsumeIntegralInRange(0, 4)) {
      case 0:
        break;
      case 1:
        view_.row_stride = cols + gap;
        break;
      case 2:
        view_.row_stride = 1 + gap;
        view_.col_stride = view_.row_stride * rows;
        break;
      case 3:
        view_.col_stride = 1 + gap;
        view_.row_stride = view_.col_stride * cols + gap;
        break;
      case 4:
        if (may_overlap) view_.row_stride = gap, view_.col_stride = input.ConsumeIntegralInRange(0, 2);
        break;
    }
    if (input.ConsumeBool()) view_.row_stride = -view_.row_stride;
    if (input.ConsumeBool()) view_.col_stride = -view_.col_stride;
    const bool is_far = input.ConsumeIntegralInRange(0, 7) == 0;  // the stride of what is never stepped over
    if (is_far && rows <= 1) view_.row_stride = any_stride(input);
    if (is_far && cols <= 1) view_.col_stride = any_stride(input);
    allocate();
    fill(input);
  }

  MatrixView view() const { return view_; }
  operator ConstMatrixView() const { return view_; }
  std::vector<unsigned char> bytes() const { return {memory_.get(), memory_.get() + size_}; }
  void restore(const std::vector<unsigned char>& bytes) { std::copy(bytes.begin(), bytes.end(), memory_.get()); }

  double get(std::int64_t row, std::int64_t col) const {
    const unsigned char* at = address(row, col);
    switch (view_.dtype) {
      case DType::f32:
        return read<float>(at);
      case DType::f16:
        return test::decode_half(read<std::uint16_t>(at));
      case DType::bf16:
        return test::decode_bfloat16(read<std::uint16_t>(at));
      case DType::i64:
        return static_cast<double>(read<std::int64_t>(at));
      case DType::f64:
        break;
    }
    return read<double>(at);
  }

  void set(std::int64_t row, std::int64_t col, double value) {
    unsigned char* at = address(row, col);
    const auto narrow = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    switch (view_.dtype) {
      case DType::f32:
        return write(at, narrow);
      case DType::f16:  // small whole numbers and their halves
        return write(at, static_cast<std::uint16_t>(
                             value == 0.0 ? 0 : (bits >> 16 & 0x8000) | ((bits >> 13) - 0x1c000 & 0x7fff)));
      case DType::bf16:
        return write(at, static_cast<std::uint16_t>(bits >> 16));
      case DType::i64:
        return write(at, static_cast<std::int64_t>(value));
      case DType::f64:
        break;
    }
    write(at, value);
  }

  bool all_of(bool (*holds)(double)) const {
    for (std::int64_t r = 0; r < view_.rows; ++r) {
      for (std::int64_t c = 0; c < view_.cols; ++c) {
        if (!holds(get(r, c))) return false;
      }
    }
    return true;
  }

 private:
  static std::int64_t any_stride(Input& input) {
    return input.ConsumeBool() ? std::numeric_limits<std::int64_t>::min() : input.ConsumeIntegral<std::int64_t>();
  }

  template <class T>
  static T read(const unsigned char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static void write(unsigned char* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }

  /// Of what is no element type: that of double, which set() then writes.
  std::int64_t element_size() const {
    return view_.dtype <= DType::i64 ? static_cast<std::int64_t>(size_of(view_.dtype)) : 8;
  }

  unsigned char* address(std::int64_t row, std::int64_t col) const {
    const std::int64_t offset = row * view_.row_stride + col * view_.col_stride;
    return static_cast<unsigned char*>(view_.data) + offset * element_size();
  }

  void allocate() {
    if (view_.rows == 0 || view_.cols == 0) {
      memory_.reset(new unsigned char[1]);
      view_.data = memory_.get() + 1;
      return;
    }
    const std::int64_t down = (view_.rows - 1) * view_.row_stride, right = (view_.cols - 1) * view_.col_stride;
    const std::int64_t lowest = std::min<std::int64_t>(down, 0) + std::min<std::int64_t>(right, 0);
    const std::int64_t highest = std::max<std::int64_t>(down, 0) + std::max<std::int64_t>(right, 0);
    size_ = static_cast<std::size_t>((highest - lowest + 1) * element_size());
    memory_.reset(new unsigned char[size_]());
    view_.data = memory_.get() - lowest * element_size();
  }

  /// Any bits at all, or small numbers with many ties.
  void fill(Input& input) {
    if (size_ == 0) return;
    if (input.ConsumeBool()) {
      input.ConsumeData(memory_.get(), size_);
      return;
    }
    for (std::int64_t r = 0; r < view_.rows; ++r) {
      for (std::int64_t c = 0; c < view_.cols; ++c) set(r, c, 0.5 * input.ConsumeIntegralInRange(-4, 4));
    }
  }

  std::size_t size_ = 0;
  std::unique_ptr<unsigned char[]> memory_;
  MatrixView view_;
};

/// Now and then a view of the same memory that no operation may accept, or one that claims less of it, or one that
/// repeats it more often than any output could hold.
inline MatrixView maybe_spoilt(Input& input, MatrixView view) {
  switch (input.ConsumeIntegralInRange(0, 40)) {
    case 0:
      view.data = nullptr;
      break;
    case 1:
      view.rows = -1 - input.ConsumeIntegralInRange<std::int64_t>(0, std::numeric_limits<std::int64_t>::max());
      break;
    case 2:
      view.cols = -1 - input.ConsumeIntegralInRange<std::int64_t>(0, std::numeric_limits<std::int64_t>::max());
      break;
    case 3:
      view.rows /= 2;
      break;
    case 4:
      view.cols /= 2;
      break;
    case 5:
      view.rows = input.ConsumeIntegralInRange(std::int64_t{1} << 32, std::numeric_limits<std::int64_t>::max());
      view.row_stride = 0;
      break;
    case 6:
      if (view.rows < 2) break;
      view.row_stride = input.ConsumeIntegralInRange(std::int64_t{1} << 60, std::numeric_limits<std::int64_t>::max());
      break;
    default:
      break;
  }
  return view;
}

/// What `compute` gives under every instruction set at hand, which has to be the same.
template <class Compute>
auto at_every_isa(Compute&& compute) {
  static const std::vector<Isa> supported = cpu_info().supported;
  auto first = compute();
  for (std::size_t i = 0; i + 1 < supported.size(); ++i) {
    const test::ForcedIsa forced(supported[i]);
    require(compute() == first, std::string("same result with ") + name_of(supported[i]));
  }
  return first;
}

/// Labels are the lowest members of their clusters; returns how many clusters there are.
inline std::int64_t count_clusters(const std::vector<std::int64_t>& labels) {
  std::int64_t clusters = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::int64_t label = labels[i];
    require(label >= 0 && label <= static_cast<std::int64_t>(i), "a label is the lowest member");
    require(labels[static_cast<std::size_t>(label)] == label, "the lowest member is its own label");
    clusters += label == static_cast<std::int64_t>(i);
  }
  return clusters;
}

}  // namespace stun_ext::fuzz

// One thread, or every input would start some; executors that split the work differently are part of the inputs.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  stun_ext::set_num_threads(1);
  return 0;
}
