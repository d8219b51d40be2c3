// SPDX-License-Identifier: Apache-2.0
// Against the CPU core, whose masks tests/cpp compares with a stable sort.
#include "device_support.hpp"

namespace stun_ext::test {
namespace {

using NmMasks = CudaTest;

void expect_as_cpu(Matrix& weight, const std::vector<float>& squares, std::int64_t n, std::int64_t m,
                   std::size_t offset) {
  const std::int64_t rows = weight.view().rows, cols = weight.view().cols;
  const DeviceBytes norms(squares);
  const DeviceStatus status;
  const DeviceMatrix device(weight, offset);
  const std::int64_t mask_stride = offset == 0 ? (cols + 15) / 16 * 16 : cols + 3;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * mask_stride) + 1, 7);
  const DeviceBytes device_mask(mask, offset);
  cuda::nm_mask(cuda::Batch<MatrixView>(device.view()), n, m, MaskView{device_mask.data(), rows, cols, mask_stride},
                status.get());
  nm_mask(weight.view(), n, m, MaskView{mask.data(), rows, cols, mask_stride});
  ASSERT_EQ(device_mask.host(), mask);
  ASSERT_EQ(device.host(), weight.bytes());
  ASSERT_EQ(status.host().not_finite, 0u);

  cuda::nm_prune(device.view(), squares.empty() ? nullptr : norms.data<float>(), n, m, status.get());
  Matrix pruned = weight;
  const std::int64_t zeros = nm_prune(pruned.view(), squares, n, m);
  ASSERT_EQ(device.host(), pruned.bytes());
  ASSERT_EQ(status.host().zeros, zeros);
}

TEST_F(NmMasks, AreTheCpusForEveryTypeLayoutPatternAndKind) {
  std::mt19937 generator(1);
  for (const std::int64_t m : {2, 4, 8, 16, 3, 5, 32}) {
    for (const std::int64_t blocks : {1, 3, 64, 150}) {
      for (const std::int64_t n : {std::int64_t{1}, m / 2, m - 1}) {
        for (const DType dtype : kWeightTypes) {
          for (const Layout layout : kLayouts) {
            const int kind = static_cast<int>(generator() % kKinds);
            SCOPED_TRACE(testing::Message() << n << ':' << m << ' ' << blocks << ' ' << name_of(dtype) << " layout "
                                            << static_cast<int>(layout) << " kind " << kind);
            Matrix weight(dtype, 70, m * blocks, layout);
            fill(weight, generator, kind);
            std::vector<float> squares;
            if (generator() % 3 != 0) squares = some_squares(m * blocks, generator, generator() % 2 == 0);
            expect_as_cpu(weight, squares, n, m, generator() % 4 == 0 ? size_of(dtype) : 0);
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(NmMasks, LeaveBlocksWithNanAndTellTheFirst) {
  std::mt19937 generator(2);
  for (const std::int64_t m : {4, 8, 16, 3}) {
    const std::int64_t cols = m * 20;
    Matrix weight(DType::bf16, 40, cols);
    fill(weight, generator, 0);
    weight.set(5, m + 1, kNaN), weight.set(30, 2 * m, kInf);
    const DeviceMatrix device(weight);
    const DeviceStatus status;
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(40 * cols), 7);
    const DeviceBytes device_mask(mask);
    cuda::nm_mask(cuda::Batch<MatrixView>(device.view()), 2, m, MaskView{device_mask.data(), 40, cols, cols},
                  status.get());
    EXPECT_EQ(status.host().not_finite, ~static_cast<std::uint64_t>(5 * cols + m + 1));  // Inf is a legal score
    expect_error([&] { cuda::throw_if_illegal("nm_mask", "scores", status.host(), 40, cols, true); },
                 {"[nm_mask] scores must not hold NaN", "row 5, column " + std::to_string(m + 1)});
    Matrix good = weight;
    for (std::int64_t i = 0; i < m; ++i) good.set(5, m + i, 0.0);
    nm_mask(good.view(), 2, m, {mask.data(), 40, cols, cols});
    for (std::int64_t i = 0; i < m; ++i) mask[static_cast<std::size_t>(5 * cols + m + i)] = 7;
    EXPECT_EQ(device_mask.host(), mask);

    cuda::nm_prune(device.view(), nullptr, 2, m, status.get());
    EXPECT_EQ(status.host().not_finite, ~static_cast<std::uint64_t>(5 * cols + m + 1));
    for (std::int64_t i = 0; i < m; ++i) good.set(30, 2 * m + i, 0.0);
    nm_prune(good.view(), {}, 2, m);
    for (std::int64_t i = 0; i < m; ++i) {
      good.set(5, m + i, weight.get(5, m + i)), good.set(30, 2 * m + i, weight.get(30, 2 * m + i));
    }
    good.set(5, m + 1, kNaN);
    EXPECT_EQ(device.host(), good.bytes());
  }
}

TEST_F(NmMasks, LeaveBlocksWithIllegalNorms) {
  std::mt19937 generator(3);
  for (const std::int64_t m : {4, 16, 5}) {
    const std::int64_t cols = m * 12;
    Matrix weight(DType::f32, 33, cols);
    fill(weight, generator, 0);
    auto squares = some_squares(cols, generator, false);
    squares[static_cast<std::size_t>(m + 2)] = -1;
    const DeviceMatrix device(weight);
    const DeviceBytes norms(squares);
    const DeviceStatus status;
    cuda::nm_prune(device.view(), norms.data<float>(), 1, m, status.get());
    EXPECT_EQ(status.host().illegal_norm, ~static_cast<std::uint64_t>(m + 2));
    squares[static_cast<std::size_t>(m + 2)] = 1;
    Matrix pruned = weight;
    nm_prune(pruned.view(), squares, 1, m);
    for (std::int64_t r = 0; r < 33; ++r) {
      for (std::int64_t c = m; c < 2 * m; ++c) pruned.set(r, c, weight.get(r, c));
    }
    EXPECT_EQ(device.host(), pruned.bytes());
  }
}

TEST_F(NmMasks, TakeBatchesOfMatrices) {
  std::mt19937 generator(4);
  Matrix weight(DType::bf16, 3 * 40, 64);
  fill(weight, generator, 0);
  const auto squares = some_squares(3 * 64, generator, false);
  const DeviceMatrix device(weight);
  const DeviceBytes norms(squares);
  const DeviceStatus status;
  MatrixView first = device.view();
  first.rows = 40;
  cuda::nm_prune({first, 3, 40 * 64}, norms.data<float>(), 2, 4, status.get());
  Matrix pruned = weight;
  std::int64_t zeros = 0;
  for (std::int64_t i = 0; i < 3; ++i) {
    MatrixView one = pruned.view();
    one.data = static_cast<std::uint16_t*>(one.data) + i * 40 * 64;
    one.rows = 40;
    zeros += nm_prune(one, std::vector<float>(squares.begin() + i * 64, squares.begin() + (i + 1) * 64), 2, 4);
  }
  EXPECT_EQ(device.host(), pruned.bytes());
  EXPECT_EQ(status.host().zeros, zeros);
}

}  // namespace
}  // namespace stun_ext::test
