// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "stun_ext/cuda/mask.hpp"
#include "support.hpp"

namespace stun_ext::test {

#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())

/// Bytes in device memory, `offset` bytes after an address that is aligned to 256.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size, std::size_t offset = 0) : size_(size), offset_(offset) {
    EXPECT_CUDA(cudaMalloc(&data_, size + offset + 1));
  }
  template <class T>
  explicit DeviceBytes(const std::vector<T>& values, std::size_t offset = 0)
      : DeviceBytes(values.size() * sizeof(T), offset) {
    EXPECT_CUDA(cudaMemcpy(data(), values.data(), size_, cudaMemcpyHostToDevice));
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  template <class T = unsigned char>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(data_) + offset_);
  }
  template <class T = unsigned char>
  std::vector<T> host() const {
    std::vector<T> values(size_ / sizeof(T));
    EXPECT_CUDA(cudaMemcpy(values.data(), data(), size_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_, offset_;
};

/// A Matrix copied to the device, guards and all.
class DeviceMatrix {
 public:
  explicit DeviceMatrix(Matrix& matrix, std::size_t offset = 0) : bytes_(matrix.bytes(), offset), view_(matrix.view()) {
    view_.data = bytes_.data();
  }
  const MatrixView& view() const { return view_; }
  std::vector<unsigned char> host() const { return bytes_.host(); }

 private:
  DeviceBytes bytes_;
  MatrixView view_;
};

/// Where operations report.
class DeviceStatus {
 public:
  DeviceStatus() : bytes_(std::vector<std::uint64_t>(4, 0)) {}
  cuda::MaskStatus* get() const { return bytes_.data<cuda::MaskStatus>(); }
  cuda::MaskStatus host() const { return bytes_.host<cuda::MaskStatus>().at(0); }

 private:
  DeviceBytes bytes_;
};

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device here";
  }
};

constexpr DType kWeightTypes[] = {DType::f32, DType::f16, DType::bf16};

/// Weights of one of several kinds: 0 normal, 1 few values (ties), 2 all equal, 3 many zeros of both signs, 4 every
/// magnitude that the type has, 5 scores that differ in their last bits, 6 rows of very different size, 7 subnormals.
constexpr int kKinds = 8;

inline void fill(Matrix& weight, std::mt19937& generator, int kind) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> few(-3, 3), exponent(-14, 15), sign(0, 1), last(0, 40);
  const int smallest = weight.view().dtype == DType::f16 ? -22 : -140;
  weight.fill([&](std::int64_t r, std::int64_t) -> double {
    if (kind == 1) return few(generator);
    if (kind == 2) return 0.5;
    if (kind == 3) return few(generator) == 0 ? normal(generator) : sign(generator) == 0 ? 0.0 : -0.0;
    if (kind == 4) return std::ldexp(normal(generator), exponent(generator)) * 0.1;
    if (kind == 5) return 1 + std::ldexp(last(generator), -23);
    if (kind == 6) return std::ldexp(normal(generator), static_cast<int>(r % 3) * 5 - 5);
    if (kind == 7) return std::ldexp(normal(generator), smallest);
    return normal(generator);
  });
}

/// Norms with zeros and equal ones among them.
inline std::vector<float> some_squares(std::int64_t cols, std::mt19937& generator, bool are_few) {
  std::uniform_int_distribution<int> square(0, 4);
  std::uniform_real_distribution<float> any(0, 100);
  std::vector<float> squares;
  for (std::int64_t c = 0; c < cols; ++c) {
    squares.push_back(are_few ? static_cast<float>(square(generator)) : any(generator));
  }
  return squares;
}

}  // namespace stun_ext::test
