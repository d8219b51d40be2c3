// SPDX-License-Identifier: Apache-2.0
// Against the CPU core, whose masks tests/cpp compares with a stable sort.
#include "device_support.hpp"

namespace stun_ext::test {
namespace {

using WandaMasks = CudaTest;

std::vector<std::int64_t> some_counts(std::int64_t rows, std::int64_t cols, std::mt19937& generator) {
  std::uniform_int_distribution<std::int64_t> any(0, cols), about_half(cols / 2, (cols + 2) / 2);
  std::vector<std::int64_t> counts;
  for (std::int64_t r = 0; r < rows; ++r) {
    counts.push_back(r % 7 == 3 ? 0 : r % 7 == 4 ? cols : r % 2 == 0 ? any(generator) : about_half(generator));
  }
  return counts;
}

/// Prunes in place and makes a mask, and compares every byte, guards among them, with the CPU's.
void expect_as_cpu(Matrix& weight, const std::vector<float>& squares, const std::vector<std::int64_t>& counts,
                   std::size_t offset) {
  const std::int64_t rows = weight.view().rows, cols = weight.view().cols;
  const DeviceBytes norms(squares), device_counts(counts);
  const float* norm = squares.empty() ? nullptr : norms.data<float>();
  const cuda::PruneCounts prune_counts{0, device_counts.data<std::int64_t>()};
  const DeviceStatus status;

  const DeviceMatrix device(weight, offset);
  const std::int64_t mask_stride = offset == 0 ? (cols + 15) / 16 * 16 : cols + 3;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * mask_stride) + 1, 7);
  const DeviceBytes device_mask(mask, offset);
  cuda::wanda_mask(cuda::Batch<MatrixView>(device.view()), norm, prune_counts,
                   MaskView{device_mask.data(), rows, cols, mask_stride}, status.get());
  EXPECT_EQ(status.host().not_finite | status.host().illegal_norm | status.host().illegal_count, 0u);
  wanda_mask(weight.view(), squares, counts, MaskView{mask.data(), rows, cols, mask_stride});
  ASSERT_EQ(device_mask.host(), mask);
  ASSERT_EQ(device.host(), weight.bytes());  // only read

  cuda::wanda_prune(device.view(), norm, prune_counts, status.get());
  Matrix pruned = weight;
  const std::int64_t zeros = wanda_prune(pruned.view(), squares, counts);
  ASSERT_EQ(device.host(), pruned.bytes());
  ASSERT_EQ(status.host().zeros, zeros);
  ASSERT_EQ(status.host().not_finite | status.host().illegal_norm | status.host().illegal_count, 0u);
}

TEST_F(WandaMasks, AreTheCpusForEveryTypeLayoutSizeAndKind) {
  std::mt19937 generator(1);
  for (const std::int64_t cols : {1, 2, 7, 8, 9, 31, 64, 200, 255, 768, 1000, 1024, 1025, 2048, 3000, 4097}) {
    for (const DType dtype : kWeightTypes) {
      for (const Layout layout : kLayouts) {
        for (int kind = 0; kind < kKinds; ++kind) {
          SCOPED_TRACE(testing::Message()
                       << cols << ' ' << name_of(dtype) << " layout " << static_cast<int>(layout) << " kind " << kind);
          Matrix weight(dtype, 9, cols, layout);
          fill(weight, generator, kind);
          const auto counts = some_counts(9, cols, generator);
          std::vector<float> squares;
          if (kind % 2 == 0 || cols % 3 == 0) squares = some_squares(cols, generator, cols % 2 == 0);
          expect_as_cpu(weight, squares, counts, cols % 5 == 0 ? size_of(dtype) : 0);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(WandaMasks, AreTheCpusForWideRows) {
  std::mt19937 generator(2);
  for (const std::int64_t cols : {7168, 8191, 14336, 16385, 32767, 32768}) {
    for (const DType dtype : kWeightTypes) {
      for (int kind = 0; kind < kKinds; ++kind) {
        for (const bool with_norm : {true, false}) {
          SCOPED_TRACE(testing::Message() << cols << ' ' << name_of(dtype) << " kind " << kind << ' ' << with_norm);
          Matrix weight(dtype, 5, cols);
          fill(weight, generator, kind);
          const auto counts = some_counts(5, cols, generator);
          expect_as_cpu(weight, with_norm ? some_squares(cols, generator, kind == 1) : std::vector<float>(), counts, 0);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(WandaMasks, AreTheCpusForMoreRowsThanBlocksRun) {
  std::mt19937 generator(3);
  Matrix weight(DType::bf16, 6000, 96);
  fill(weight, generator, 6);
  expect_as_cpu(weight, some_squares(96, generator, false), std::vector<std::int64_t>(6000, 48), 0);
}

TEST_F(WandaMasks, TakeScoresThatOverflow) {
  Matrix weight(DType::f32, 2, 40);
  weight.fill([](std::int64_t r, std::int64_t c) {
    return c % 3 == 0 ? 3e38 : r == 0 ? 1.0 + static_cast<double>(c) : 2e38;
  });
  expect_as_cpu(weight, std::vector<float>(40, 9.0f), {20, 30}, 0);
}

TEST_F(WandaMasks, TakeBatchesOfMatrices) {
  std::mt19937 generator(4);
  constexpr std::int64_t kCount = 5, kRows = 33, kCols = 264;
  for (const std::int64_t gap : {0, 8, 3}) {
    const std::int64_t stride = kRows * kCols + gap;
    Matrix weight(DType::bf16, kCount, stride);
    fill(weight, generator, 0);
    const auto squares = some_squares(kCount * kCols, generator, false);
    const DeviceMatrix device(weight);
    const DeviceBytes norms(squares);
    const DeviceStatus status;
    MatrixView first = device.view();
    first.rows = kRows, first.cols = kCols, first.row_stride = kCols;
    std::vector<std::uint8_t> mask(kCount * kRows * kCols, 7);
    const DeviceBytes device_mask(mask);
    cuda::wanda_mask(cuda::Batch<ConstMatrixView>(first, kCount, stride), norms.data<float>(), {100, nullptr},
                     {MaskView{device_mask.data(), kRows, kCols, kCols}, kCount, kRows * kCols}, status.get());
    cuda::wanda_prune({first, kCount, stride}, norms.data<float>(), {100, nullptr}, status.get());
    Matrix pruned = weight;
    std::int64_t zeros = 0;
    for (std::int64_t i = 0; i < kCount; ++i) {
      MatrixView one = pruned.view();
      one.data = static_cast<std::uint16_t*>(one.data) + i * stride;
      one.rows = kRows, one.cols = kCols, one.row_stride = kCols;
      const std::vector<float> own(squares.begin() + i * kCols, squares.begin() + (i + 1) * kCols);
      const std::vector<std::int64_t> counts(kRows, 100);
      wanda_mask(one, own, counts, {mask.data() + i * kRows * kCols, kRows, kCols, kCols});
      zeros += wanda_prune(one, own, counts);
    }
    ASSERT_EQ(device_mask.host(), mask);
    ASSERT_EQ(device.host(), pruned.bytes());
    ASSERT_EQ(status.host().zeros, zeros);
  }
}

TEST_F(WandaMasks, LeaveRowsWithNanOrInfAndTellTheFirst) {
  std::mt19937 generator(5);
  for (const DType dtype : kWeightTypes) {
    for (const double bad : {kNaN, kInf, -kInf}) {
      Matrix weight(dtype, 20, 300);
      fill(weight, generator, 0);
      weight.set(7, 211, bad), weight.set(7, 290, bad), weight.set(12, 3, bad);
      std::vector<float> squares = some_squares(300, generator, false);
      squares[211] = 0;  // Inf · 0 is NaN, which must be seen too
      const DeviceMatrix device(weight);
      const DeviceBytes norms(squares);
      const DeviceStatus status;
      cuda::wanda_prune(device.view(), norms.data<float>(), {150, nullptr}, status.get());
      Matrix pruned = weight;
      for (const std::int64_t row : {7, 12}) {
        for (std::int64_t c = 0; c < 300; ++c) pruned.set(row, c, 0.0);
      }
      wanda_prune(pruned.view(), squares, std::vector<std::int64_t>(20, 150));
      for (const std::int64_t row : {7, 12}) {
        for (std::int64_t c = 0; c < 300; ++c) pruned.set(row, c, weight.get(row, c));
      }
      pruned.set(7, 211, bad), pruned.set(7, 290, bad), pruned.set(12, 3, bad);
      EXPECT_EQ(device.host(), pruned.bytes());
      EXPECT_EQ(status.host().not_finite, ~std::uint64_t{7 * 300 + 211});
      expect_error([&] { cuda::throw_if_illegal("wanda_prune", "weight", status.host(), 20, 300); },
                   {"[wanda_prune] weight must be finite", "row 7, column 211"});
    }
  }
}

TEST_F(WandaMasks, LeaveMatricesWithIllegalNorms) {
  std::mt19937 generator(6);
  for (const float bad : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    Matrix weight(DType::bf16, 3, 64 * 128);
    fill(weight, generator, 0);
    auto squares = some_squares(3 * 128, generator, false);
    squares[128 + 17] = bad;
    const DeviceMatrix device(weight);
    const DeviceBytes norms(squares);
    const DeviceStatus status;
    MatrixView first = device.view();
    first.rows = 64, first.cols = 128, first.row_stride = 128;
    cuda::wanda_prune({first, 3, 64 * 128}, norms.data<float>(), {64, nullptr}, status.get());
    const auto after = device.host();
    const std::size_t size = 64 * 128 * 2;
    for (std::size_t i = 0; i < 3; ++i) {
      const bool is_same = std::equal(after.begin() + static_cast<std::ptrdiff_t>(i * size),
                                      after.begin() + static_cast<std::ptrdiff_t>((i + 1) * size),
                                      weight.bytes().begin() + static_cast<std::ptrdiff_t>(i * size));
      EXPECT_EQ(is_same, i == 1);
    }
    expect_error([&] { cuda::throw_if_illegal("wanda_prune", "weight", status.host(), 64, 128); },
                 {"[wanda_prune] input_sq_norm", "feature 17 of matrix 1"});
  }
}

TEST_F(WandaMasks, LeaveRowsWithIllegalCounts) {
  std::mt19937 generator(7);
  Matrix weight(DType::f16, 4, 50);
  fill(weight, generator, 0);
  const DeviceMatrix device(weight);
  const DeviceBytes counts(std::vector<std::int64_t>{10, 51, 20, -1});
  const DeviceStatus status;
  cuda::wanda_prune(device.view(), nullptr, {0, counts.data<std::int64_t>()}, status.get());
  Matrix pruned = weight;
  wanda_prune(pruned.view(), {}, std::vector<std::int64_t>{10, 0, 20, 0});
  EXPECT_EQ(device.host(), pruned.bytes());
  expect_error([&] { cuda::throw_if_illegal("wanda_prune", "weight", status.host(), 4, 50); },
               {"[wanda_prune] prune_counts must be in [0, 50]", "row 1"});
}

TEST_F(WandaMasks, AreQueuedOnTheStreamAndCanBeCaptured) {
  std::mt19937 generator(8);
  Matrix weight(DType::bf16, 64, 512);
  fill(weight, generator, 0);
  const auto squares = some_squares(512, generator, false);
  const DeviceMatrix device(weight);
  const DeviceBytes norms(squares), source(weight.bytes());
  const DeviceStatus status;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  cuda::wanda_prune(device.view(), norms.data<float>(), {256, nullptr}, status.get(), {stream, 0});
  cuda::nm_prune(device.view(), norms.data<float>(), 1, 4, status.get(), {stream, 0});
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(device.host(), weight.bytes());  // captured, not run
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  Matrix pruned = weight;
  const std::int64_t first_zeros = wanda_prune(pruned.view(), squares, std::vector<std::int64_t>(64, 256));
  const std::int64_t zeros = nm_prune(pruned.view(), squares, 1, 4);
  for (int run = 0; run < 2; ++run) {
    EXPECT_CUDA(cudaMemcpy(device.view().data, source.data(), weight.bytes().size(), cudaMemcpyDeviceToDevice));
    EXPECT_CUDA(cudaGraphLaunch(executable, stream));
    EXPECT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_EQ(device.host(), pruned.bytes());
    EXPECT_EQ(status.host().zeros, (run + 1) * (first_zeros + zeros));  // operations add to it
  }
  cudaGraphExecDestroy(executable), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

TEST_F(WandaMasks, TakeNothing) {
  const DeviceStatus status;
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 0}, {0, 0}}) {
    cuda::wanda_prune(MatrixView{nullptr, rows, cols, cols, 1, DType::bf16}, nullptr, {}, status.get());
    EXPECT_EQ(status.host().zeros, 0);
  }
}

}  // namespace
}  // namespace stun_ext::test
