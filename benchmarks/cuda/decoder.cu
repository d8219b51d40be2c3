// SPDX-License-Identifier: Apache-2.0
// An experiment, not a product: how fast can bitmap bfloat16 be decoded from shared memory into operand A of mma?
//
// A tile is 16 x 64 weights: 32 mask words, one a lane, then the non-zero values. A lane owns 32 weights of it: bits 8k
// to 8k + 7 are its operand of the k-th of four m16n8k16. Tiles stay in shared memory and are decoded again and again;
// each operand goes into one mma (8 columns) whose B is constant. Weights per second, for the whole chip.
//
//   dense      no decoding: operands by 16-byte loads
//   predicated values lane after lane; a lane loads each of its values if its bit is set
//   counted    the same order; addresses by popcount, two loads for a pair of weights, masked
//   grouped    mask words of 8 lanes x 4 weights; their values lie together, so that lanes read neighbours
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

constexpr int kTiles = 24, kThreads = 256, kBlocksPerProcessor = 4, kTileWeights = 1024;
enum class Way { dense, predicated, counted, grouped };
constexpr const char* kNames[] = {"dense", "predicated", "counted", "grouped"};

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ void multiply(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ std::uint32_t load16(std::uint32_t at) {
  std::uint32_t value;
  asm volatile("{.reg .u16 t; ld.shared.u16 t,[%1]; cvt.u32.u16 %0,t;}" : "=r"(value) : "r"(at));
  return value;
}
__device__ std::uint32_t load32(std::uint32_t at) {
  std::uint32_t value;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(value) : "r"(at));
  return value;
}
__device__ uint4 load128(std::uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}

/// Sum over the lanes before this one.
__device__ std::uint32_t sum_before(std::uint32_t value, int lane) {
  std::uint32_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

/// Operands of the four mma of a tile. `scratch`: 256 bytes of the warp's, for grouped.
template <Way way>
__device__ void decode(std::uint32_t tile, std::uint32_t scratch, int lane, std::uint32_t (&a)[4][4]) {
  if constexpr (way == Way::dense) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 v = load128(tile + k * 512 + lane * 16);
      a[k][0] = v.x, a[k][1] = v.y, a[k][2] = v.z, a[k][3] = v.w;
    }
    return;
  }
  const std::uint32_t word = load32(tile + lane * 4);
  std::uint32_t at = tile + 128 + 2 * sum_before(__popc(word), lane);
  if constexpr (way == Way::predicated) {
#pragma unroll
    for (int p = 0; p < 16; ++p) {
      std::uint32_t low = 0, high = 0;
      if (word & (1u << (2 * p))) low = load16(at), at += 2;
      if (word & (2u << (2 * p))) high = load16(at), at += 2;
      a[p / 4][p % 4] = __byte_perm(low, high, 0x5410);
    }
  } else if constexpr (way == Way::counted) {
#pragma unroll
    for (int p = 0; p < 16; ++p) {
      const std::uint32_t here = at + 2 * __popc(word & ((1u << (2 * p)) - 1));
      const std::uint32_t first = load16(here), second = load16(here + 2);  // may read beyond: never used then
      const std::uint32_t bits = word >> (2 * p);
      const std::uint32_t low = bits & 1 ? first : 0u;
      const std::uint32_t high = bits & 2 ? (bits & 1 ? second : first) : 0u;
      a[p / 4][p % 4] = __byte_perm(low, high, 0x5410);
    }
  } else {
    // Word 8g + q is of the lanes 8g to 8g + 7 and their weights 4q to 4q + 3: bit 4 (lane % 8) + i.
    asm volatile("st.shared.v2.u32 [%0],{%1,%2};" ::"r"(scratch + lane * 8), "r"(word), "r"(at));
    __syncwarp();
    const int shift = lane % 8 * 4;
    const std::uint32_t before = (1u << shift) - 1;
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      const uint4 two = load128(scratch + lane / 8 * 64 + h * 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t w = i == 0 ? two.x : two.z;
        std::uint32_t here = (i == 0 ? two.y : two.w) + 2 * __popc(w & before);
        const std::uint32_t mine = w >> shift;
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          std::uint32_t low = 0, high = 0;
          if (mine & (1u << (2 * q))) low = load16(here), here += 2;
          if (mine & (2u << (2 * q))) high = load16(here), here += 2;
          a[h][i * 2 + q] = __byte_perm(low, high, 0x5410);
        }
      }
    }
    __syncwarp();
  }
}

template <Way way>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    run(const unsigned char* blob, const std::uint32_t* offsets, int bytes, int rounds, float* sums,
        std::uint32_t* decoded) {
  extern __shared__ uint4 memory[];
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kThreads) {
    memory[i] = reinterpret_cast<const uint4*>(blob)[i];
  }
  __shared__ std::uint32_t starts[kTiles];
  __shared__ uint2 scratch[kThreads];
  if (threadIdx.x < kTiles) starts[threadIdx.x] = offsets[threadIdx.x];
  __syncthreads();
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto own = static_cast<std::uint32_t>(__cvta_generic_to_shared(scratch + warp * 32));
  float sum[4] = {};
  std::uint32_t a[4][4];
  if (decoded != nullptr) {  // to be compared with what was encoded
    for (int t = warp; t < kTiles; t += kThreads / 32) {
      decode<way>(base + starts[t], own, lane, a);
      for (int i = 0; i < 16; ++i) decoded[(t * 32 + lane) * 16 + i] = a[i / 4][i % 4];
    }
    return;
  }
  int t = warp * (kTiles * 32 / kThreads);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    decode<way>(base + starts[t], own, lane, a);
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply(sum, a[k], 0x3f803f80u + lane, 0x3f803f80u);
    t = t + 1 == kTiles ? 0 : t + 1;
  }
  sums[blockIdx.x * kThreads + threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3];
}

template <Way way>
void measure(double sparsity, int processors) {
  std::mt19937 generator(1);
  std::bernoulli_distribution is_zero(sparsity);
  std::vector<unsigned char> blob;
  std::vector<std::uint32_t> offsets, expected;
  const auto put = [&](std::uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) blob.push_back(static_cast<unsigned char>(value >> (8 * i)));
  };
  for (int t = 0; t < kTiles; ++t) {
    std::uint32_t values[32][32];  // lane, weight
    for (auto& lane : values) {
      for (auto& value : lane) value = is_zero(generator) ? 0u : 1u + generator() % 0x7f00u;
    }
    offsets.push_back(static_cast<std::uint32_t>(blob.size()));
    std::uint32_t words[32] = {};
    std::vector<std::uint32_t> stream;
    for (int i = 0; i < 1024; ++i) {
      const bool grouped = way == Way::grouped;
      const int word = i / 32, bit = i % 32;
      const int lane = grouped ? word / 8 * 8 + bit / 4 : word;
      const int weight = grouped ? word % 8 * 4 + bit % 4 : bit;
      if (values[lane][weight] == 0) continue;
      words[word] |= 1u << bit;
      stream.push_back(values[lane][weight]);
    }
    if (way == Way::dense) {
      for (int i = 0; i < 1024; ++i) put(values[i % 256 / 8][i / 256 * 8 + i % 8], 2);
    } else {
      for (const std::uint32_t word : words) put(word, 4);
      for (const std::uint32_t value : stream) put(value, 2);
    }
    while (blob.size() % 16 != 0) blob.push_back(0);
    for (const auto& lane : values) {
      for (int p = 0; p < 16; ++p) expected.push_back(lane[2 * p] | lane[2 * p + 1] << 16);
    }
  }
  put(0, 16);  // what `counted` may read beyond the last tile
  unsigned char* device_blob;
  std::uint32_t *device_offsets, *device_decoded;
  float* sums;
  const int blocks = processors * kBlocksPerProcessor;
  check(cudaMalloc(&device_blob, blob.size()));
  check(cudaMalloc(&device_offsets, kTiles * 4));
  check(cudaMalloc(&device_decoded, expected.size() * 4));
  check(cudaMalloc(&sums, static_cast<std::size_t>(blocks) * kThreads * 4));
  check(cudaMemcpy(device_blob, blob.data(), blob.size(), cudaMemcpyHostToDevice));
  check(cudaMemcpy(device_offsets, offsets.data(), kTiles * 4, cudaMemcpyHostToDevice));
  const int bytes = static_cast<int>(blob.size());
  check(cudaFuncSetAttribute(run<way>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  run<way><<<1, kThreads, bytes>>>(device_blob, device_offsets, bytes, 0, sums, device_decoded);
  check(cudaGetLastError());
  std::vector<std::uint32_t> decoded(expected.size());
  check(cudaMemcpy(decoded.data(), device_decoded, decoded.size() * 4, cudaMemcpyDeviceToHost));
  const bool is_right = decoded == expected;
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, run<way>, kThreads, bytes));
  constexpr int kRounds = 20000;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin)), check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    check(cudaEventRecord(begin));
    run<way><<<blocks, kThreads, bytes>>>(device_blob, device_offsets, bytes, kRounds, sums, nullptr);
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  const double weights = static_cast<double>(blocks) * (kThreads / 32) * kRounds * kTileWeights;
  std::printf("| %s | %.0f%% | %.2fe12 | %d | %s |\n", kNames[static_cast<int>(way)], 100 * sparsity,
              weights / times[times.size() / 2] / 1e9, resident * kThreads / 32, is_right ? "yes" : "NO");
  check(cudaFree(device_blob)), check(cudaFree(device_offsets)), check(cudaFree(device_decoded)), check(cudaFree(sums));
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  std::printf(
      "%s, %d multiprocessors\n\n| way | sparsity | weights/s | warps a multiprocessor | decodes rightly "
      "|\n|---|---|---|---|---|\n",
      properties.name, properties.multiProcessorCount);
  measure<Way::dense>(0, properties.multiProcessorCount);
  for (const double sparsity : {0.4, 0.5, 0.6, 0.65, 0.7}) {
    measure<Way::predicated>(sparsity, properties.multiProcessorCount);
    measure<Way::counted>(sparsity, properties.multiProcessorCount);
    measure<Way::grouped>(sparsity, properties.multiProcessorCount);
  }
  return 0;
}
