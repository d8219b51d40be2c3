// SPDX-License-Identifier: Apache-2.0
// Masks on the GPU: GB/s of weights (their bytes, once) and the share of a device copy of the same bytes, whose traffic
// is the least that pruning in place can have. Every run begins with fresh weights, restored outside the timing.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "stun_ext/cuda/mask.hpp"

namespace {

using namespace stun_ext;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* allocate(std::int64_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<std::size_t>(count) * sizeof(T)));
  return static_cast<T*>(data);
}

std::uint32_t bits_of(float value, DType dtype) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (dtype == DType::f32) return bits;
  if (dtype == DType::bf16) return bits >> 16;
  const std::uint32_t exponent = bits >> 23 & 255;  // normal halves, truncated; others become 0
  return exponent < 113 ? 0 : (bits >> 16 & 0x8000u) | (exponent - 112) << 10 | (bits >> 13 & 0x3ffu);
}

/// Normal weights whose rows differ in size by some tens of percent, as trained ones do.
void fill(void* weight, std::int64_t count, std::int64_t cols, DType dtype) {
  constexpr std::int64_t kPart = std::int64_t{1} << 24;
  const std::size_t size = size_of(dtype);
  static std::vector<float> values;
  if (values.empty()) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < kPart + (1 << 16); ++i) values.push_back(normal(generator));
  }
  std::vector<unsigned char> part(static_cast<std::size_t>(kPart) * size);
  for (std::int64_t i = 0; i < kPart; ++i) {
    const auto row = static_cast<std::uint32_t>(i / cols);
    const float scale = 0.02f * (0.8f + 0.4f * static_cast<float>(row * 2654435761u >> 8) / 16777216.0f);
    const std::uint32_t bits = bits_of(values[static_cast<std::size_t>(i)] * scale, dtype);
    std::memcpy(part.data() + static_cast<std::size_t>(i) * size, &bits, size);
  }
  for (std::int64_t done = 0; done < count; done += kPart) {
    check(cudaMemcpy(static_cast<unsigned char*>(weight) + static_cast<std::size_t>(done) * size, part.data(),
                     static_cast<std::size_t>(std::min(kPart, count - done)) * size, cudaMemcpyHostToDevice));
  }
}

double median_ms(int runs, const std::function<void()>& restore, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin)), check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < runs + 2; ++i) {
    restore();
    check(cudaEventRecord(begin));
    run();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Case {
  const char* name;
  std::int64_t count, rows, cols;
  DType dtype;
};

class Bench {
 public:
  Bench() : status_(allocate<cuda::MaskStatus>(1)) {
    check(cudaMemset(status_, 0, sizeof *status_));
    std::printf("| weights | type | operation | ms | GB/s of weights | share of a copy |\n|---|---|---|---|---|---|\n");
  }

  void run(const Case& c, int runs, bool all) {
    const std::int64_t total = c.count * c.rows * c.cols;
    const std::size_t bytes = static_cast<std::size_t>(total) * size_of(c.dtype);
    void* source = allocate<unsigned char>(static_cast<std::int64_t>(bytes));
    void* work = allocate<unsigned char>(static_cast<std::int64_t>(bytes));
    auto* mask = all ? allocate<std::uint8_t>(total) : nullptr;
    auto* norms = allocate<float>(c.count * c.cols);
    std::mt19937 generator(2);
    std::uniform_real_distribution<float> any(1, 100);
    std::vector<float> squares;
    for (std::int64_t i = 0; i < c.count * c.cols; ++i) squares.push_back(any(generator));
    check(cudaMemcpy(norms, squares.data(), squares.size() * 4, cudaMemcpyHostToDevice));
    fill(source, total, c.cols, c.dtype);
    const MatrixView first{work, c.rows, c.cols, c.cols, 1, c.dtype};
    const cuda::Batch<MatrixView> batch(first, c.count, c.rows * c.cols);
    const cuda::Batch<MaskView> masks({mask, c.rows, c.cols, c.cols}, c.count, c.rows * c.cols);
    const auto restore = [&] { check(cudaMemcpyAsync(work, source, bytes, cudaMemcpyDeviceToDevice)); };
    const auto nothing = [] {};
    const cuda::PruneCounts half{c.cols / 2, nullptr};
    const double copy = median_ms(runs, nothing, restore);
    const auto line = [&](const char* operation, double ms) {
      std::printf("| %s, %lld x %lld x %lld | %s | %s | %.3f | %.0f | %.0f%% |\n", c.name,
                  static_cast<long long>(c.count), static_cast<long long>(c.rows), static_cast<long long>(c.cols),
                  name_of(c.dtype), operation, ms, static_cast<double>(bytes) / ms / 1e6, 100 * copy / ms);
      std::fflush(stdout);
    };
    line("device copy", copy);
    line("wanda_prune", median_ms(runs, restore, [&] { cuda::wanda_prune(batch, norms, half, status_); }));
    line("wanda_prune, a call a matrix", median_ms(runs, restore, [&] {
           for (std::int64_t i = 0; i < c.count; ++i) {
             MatrixView one = first;
             one.data =
                 static_cast<unsigned char*>(work) + static_cast<std::size_t>(i * c.rows * c.cols) * size_of(c.dtype);
             cuda::wanda_prune(one, norms + i * c.cols, half, status_);
           }
         }));
    if (all) {
      line("wanda_prune, 65%",
           median_ms(runs, restore, [&] { cuda::wanda_prune(batch, norms, {c.cols * 65 / 100, nullptr}, status_); }));
      line("magnitude", median_ms(runs, restore, [&] { cuda::wanda_prune(batch, nullptr, half, status_); }));
      line("wanda_mask", median_ms(runs, nothing, [&] { cuda::wanda_mask(batch, norms, half, masks, status_); }));
      line("nm_prune 2:4", median_ms(runs, restore, [&] { cuda::nm_prune(batch, norms, 2, 4, status_); }));
      line("nm_prune 4:8", median_ms(runs, restore, [&] { cuda::nm_prune(batch, norms, 4, 8, status_); }));
      line("nm_prune 8:16", median_ms(runs, restore, [&] { cuda::nm_prune(batch, norms, 8, 16, status_); }));
      line("nm_mask 2:4", median_ms(runs, nothing, [&] { cuda::nm_mask(batch, 2, 4, masks, status_); }));
      restore();
      cuda::wanda_prune(batch, norms, {c.cols * 6 / 10, nullptr}, status_);
      line("wanda_prune of weights with 60% zeros",
           median_ms(runs, nothing, [&] { cuda::wanda_prune(batch, norms, half, status_); }));
      const MatrixView transposed{work, c.rows, c.cols, 1, c.rows, c.dtype};
      line("wanda_prune, transposed", median_ms(std::min(runs, 5), restore, [&] {
             cuda::wanda_prune({transposed, c.count, c.rows * c.cols}, norms, half, status_);
           }));
    }
    for (void* data : {source, work, static_cast<void*>(mask), static_cast<void*>(norms)}) check(cudaFree(data));
  }

 private:
  cuda::MaskStatus* status_;
};

/// All experts of an Arctic layer, three matrices of each: 26.8 GB.
void arctic_layer(int runs) {
  constexpr std::int64_t kExperts = 128, kInner = 4864, kHidden = 7168, kOne = kExperts * kInner * kHidden;
  auto* status = allocate<cuda::MaskStatus>(1);
  check(cudaMemset(status, 0, sizeof *status));
  auto* source = allocate<std::uint16_t>(kOne);
  auto* norms = allocate<float>(kExperts * kHidden);
  std::vector<float> squares;
  for (std::int64_t i = 0; i < kExperts * kHidden; ++i) squares.push_back(static_cast<float>(1 + i * 37 % 101));
  check(cudaMemcpy(norms, squares.data(), squares.size() * 4, cudaMemcpyHostToDevice));
  fill(source, kOne, kHidden, DType::bf16);
  std::uint16_t* weights[3];
  for (auto& weight : weights) weight = allocate<std::uint16_t>(kOne);
  const double ms = median_ms(
      runs,
      [&] {
        for (auto* weight : weights) check(cudaMemcpyAsync(weight, source, kOne * 2, cudaMemcpyDeviceToDevice));
      },
      [&] {
        for (int i = 0; i < 3; ++i) {
          const std::int64_t rows = i < 2 ? kInner : kHidden, cols = i < 2 ? kHidden : kInner;
          cuda::wanda_prune({{weights[i], rows, cols, cols, 1, DType::bf16}, kExperts, rows * cols}, norms,
                            {cols / 2, nullptr}, status);
        }
      });
  std::printf("\nOne Arctic layer, 128 experts, 3 x 7168 x 4864, bfloat16, %.1f GB, pruned at 50%%: %.2f ms\n",
              kOne * 6 / 1e9, ms);
  for (void* data : {static_cast<void*>(status), static_cast<void*>(source), static_cast<void*>(norms)})
    check(cudaFree(data));
  for (auto* weight : weights) check(cudaFree(weight));
}

}  // namespace

int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::atoi(argv[1]) : 20;
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors, CUDA runtime %s; medians of %d runs\n\n", properties.name,
              properties.multiProcessorCount, cuda::build_info(), runs);
  {
    Bench bench;
    bench.run({"Arctic up", 16, 4864, 7168, DType::bf16}, runs, true);
    bench.run({"Arctic down", 16, 7168, 4864, DType::bf16}, runs, false);
    bench.run({"Mixtral-8x7B down", 8, 4096, 14336, DType::bf16}, runs, true);
    bench.run({"Mixtral-8x7B up", 8, 14336, 4096, DType::bf16}, runs, false);
    bench.run({"Qwen3-30B-A3B up", 128, 768, 2048, DType::bf16}, runs, false);
    bench.run({"Qwen3-30B-A3B down", 128, 2048, 768, DType::bf16}, runs, false);
    bench.run({"wide", 8, 2048, 32768, DType::bf16}, runs, false);
    bench.run({"Arctic up", 16, 4864, 7168, DType::f16}, runs, false);
    bench.run({"Arctic up", 8, 4864, 7168, DType::f32}, runs, true);
    bench.run({"wide", 4, 2048, 32768, DType::f32}, runs, false);
  }
  arctic_layer(std::min(runs, 10));
  return 0;
}
