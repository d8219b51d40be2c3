// SPDX-License-Identifier: Apache-2.0
// The core's hot operations at real sizes: one Arctic router, one expert matrix. One thread, so that runs compare.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/mask.hpp"

namespace {

std::vector<float> gaussian(std::size_t count) {
  std::mt19937_64 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

void pairwise_distances(benchmark::State& state) {
  const std::int64_t n = state.range(0), d = state.range(1);
  const std::vector<float> rows = gaussian(static_cast<std::size_t>(n * d));
  std::vector<float> out(static_cast<std::size_t>(n * n));
  for (auto _ : state) {
    stun_ext::pairwise_distances({rows.data(), n, d, d, 1, stun_ext::DType::f32}, false,
                                 {out.data(), n, n, n, 1, stun_ext::DType::f32});
    benchmark::DoNotOptimize(out.data());
  }
  // Differences of coordinates that were squared and summed.
  state.counters["elements/s"] =
      benchmark::Counter(static_cast<double>(n * (n - 1) / 2 * d), benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(pairwise_distances)->Args({128, 7168})->Args({1024, 4096})->Unit(benchmark::kMillisecond);

void complete_linkage(benchmark::State& state) {
  const std::int64_t n = state.range(0);
  const std::vector<float> rows = gaussian(static_cast<std::size_t>(n * 16));
  std::vector<double> condensed(static_cast<std::size_t>(n * (n - 1) / 2));
  stun_ext::condensed_distances({rows.data(), n, 16, 16, 1, stun_ext::DType::f32}, condensed);
  for (auto _ : state) benchmark::DoNotOptimize(stun_ext::linkage(condensed, stun_ext::Linkage::complete));
}
BENCHMARK(complete_linkage)->Arg(128)->Arg(1024)->Arg(4096)->Unit(benchmark::kMillisecond);

std::vector<std::uint16_t> bfloat16_weights(std::int64_t count) {
  const std::vector<float> values = gaussian(static_cast<std::size_t>(count));
  std::vector<std::uint16_t> weight(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint32_t bits;
    static_assert(sizeof bits == sizeof values[i]);
    std::copy_n(reinterpret_cast<const char*>(&values[i]), sizeof bits, reinterpret_cast<char*>(&bits));
    weight[i] = static_cast<std::uint16_t>(bits >> 16);
  }
  return weight;
}

void wanda_mask(benchmark::State& state) {
  const std::int64_t rows = 1024, cols = state.range(0);
  const std::vector<std::uint16_t> weight = bfloat16_weights(rows * cols);
  const std::vector<float> norms(static_cast<std::size_t>(cols), 1.0f);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(rows), cols / 2);
  std::vector<std::uint8_t> mask(weight.size());
  for (auto _ : state) {
    stun_ext::wanda_mask({weight.data(), rows, cols, cols, 1, stun_ext::DType::bf16}, norms, counts,
                         {mask.data(), rows, cols, cols});
    benchmark::DoNotOptimize(mask.data());
  }
  state.SetBytesProcessed(state.iterations() * rows * cols * 2);
}
BENCHMARK(wanda_mask)->Arg(4096)->Arg(14336)->Unit(benchmark::kMillisecond);

constexpr std::int64_t kExpert = 4096 * 14336;  // a Mixtral expert's weights: beyond every cache of a core's own

void nm_mask(benchmark::State& state) {
  const std::int64_t rows = 4096, cols = kExpert / rows;
  const std::vector<std::uint16_t> weight = bfloat16_weights(kExpert);
  std::vector<std::uint8_t> mask(weight.size());
  for (auto _ : state) {
    stun_ext::nm_mask({weight.data(), rows, cols, cols, 1, stun_ext::DType::bf16}, state.range(0), state.range(1),
                      {mask.data(), rows, cols, cols});
    benchmark::DoNotOptimize(mask.data());
  }
  state.SetBytesProcessed(state.iterations() * kExpert * 2);
}
BENCHMARK(nm_mask)->Args({2, 4})->Args({4, 8})->Args({8, 16})->Unit(benchmark::kMillisecond);

// What memory allows: the same bytes read, or read and written, by plain loops with the widest vectors at hand.
#if defined(__x86_64__) && defined(__linux__)
#define STUN_EXT_WIDEST __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define STUN_EXT_WIDEST
#endif
constexpr std::int64_t kBlock = 64;

STUN_EXT_WIDEST std::uint16_t any_bits(const std::uint16_t* weight, std::int64_t count) {
  std::uint16_t sums[kBlock] = {};
  for (std::int64_t b = 0; b < count; b += kBlock) {
    __builtin_prefetch(weight + b + 1024), __builtin_prefetch(weight + b + 1056);
    for (std::int64_t i = 0; i < kBlock; ++i) sums[i] = static_cast<std::uint16_t>(sums[i] | weight[b + i]);
  }
  std::uint16_t all = 0;
  for (const std::uint16_t sum : sums) all = static_cast<std::uint16_t>(all | sum);
  return all;
}

STUN_EXT_WIDEST void write_bytes(const std::uint16_t* weight, std::int64_t count, std::uint8_t* mask) {
  for (std::int64_t b = 0; b < count; b += kBlock) {
    __builtin_prefetch(weight + b + 1024), __builtin_prefetch(weight + b + 1056), __builtin_prefetch(mask + b + 2048);
    for (std::int64_t i = 0; i < kBlock; ++i) mask[b + i] = static_cast<std::uint8_t>(weight[b + i]);
  }
}

void read_weights(benchmark::State& state) {
  const std::vector<std::uint16_t> weight = bfloat16_weights(kExpert);
  for (auto _ : state) benchmark::DoNotOptimize(any_bits(weight.data(), kExpert));
  state.SetBytesProcessed(state.iterations() * kExpert * 2);
}
BENCHMARK(read_weights)->Unit(benchmark::kMillisecond);

void read_weights_write_bytes(benchmark::State& state) {
  const std::vector<std::uint16_t> weight = bfloat16_weights(kExpert);
  std::vector<std::uint8_t> mask(weight.size());
  for (auto _ : state) {
    write_bytes(weight.data(), kExpert, mask.data());
    benchmark::DoNotOptimize(mask.data());
  }
  state.SetBytesProcessed(state.iterations() * kExpert * 2);
}
BENCHMARK(read_weights_write_bytes)->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
  stun_ext::set_num_threads(1);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
