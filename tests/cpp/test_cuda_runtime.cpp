// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "stun_ext/cuda/mask.hpp"
#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/error.hpp"
#include "support.hpp"

namespace stun_ext::cuda {
namespace {

TEST(CudaRuntime, TellsWhatTheBuildHolds) {
  const std::string info = build_info();
  if (built_with_cuda()) {
    EXPECT_NE(info.find('.'), std::string::npos);
    EXPECT_GE(device_count(), 0);  // without a driver: an answer, no exception and no exit
  } else {
    EXPECT_EQ(info, "built without CUDA");
    EXPECT_EQ(device_count(), 0);
  }
}

TEST(CudaRuntime, MasksAreRefusedWhereTheBuildLacksThem) {
  if (built_with_cuda()) GTEST_SKIP() << "tests/cuda runs them";
  const MatrixView weight{nullptr, 0, 4, 4, 1, DType::bf16};
  MaskStatus status{};
  EXPECT_THROW(wanda_mask(Batch<MatrixView>(weight), nullptr, {}, MaskView{}, &status), UnavailableError);
  EXPECT_THROW(wanda_prune(weight, nullptr, {}, &status), UnavailableError);
  EXPECT_THROW(nm_mask(Batch<MatrixView>(weight), 2, 4, MaskView{}, &status), UnavailableError);
  EXPECT_THROW(nm_prune(weight, nullptr, 2, 4, &status), UnavailableError);
}

// Arguments are checked on the host, before anything of CUDA is called.
TEST(CudaMasks, RefuseIllegalArguments) {
  if (!built_with_cuda()) GTEST_SKIP() << "built without CUDA";
  std::uint16_t weights[64];
  std::uint8_t bytes[64];
  MaskStatus status{};
  const auto view = [&](std::int64_t rows, std::int64_t cols, std::int64_t row_stride, std::int64_t col_stride = 1) {
    return MatrixView{weights, rows, cols, row_stride, col_stride, DType::bf16};
  };
  const MatrixView good = view(4, 8, 8);
  using test::expect_error;
  expect_error([&] { wanda_prune(view(4, 8, 0), nullptr, {4, nullptr}, &status); }, {"[wanda_prune] weight must not"});
  expect_error([&] { wanda_prune(view(4, 8, 8, 0), nullptr, {4, nullptr}, &status); },
               {"[wanda_prune] weight must not"});
  expect_error([&] { wanda_prune(view(4, 8, 7), nullptr, {4, nullptr}, &status); }, {"share memory"});
  expect_error([&] { wanda_prune({good, 2, 24}, nullptr, {4, nullptr}, &status); }, {"share memory"});
  expect_error([&] { wanda_prune(view(-1, 8, 8), nullptr, {4, nullptr}, &status); }, {"negative size", "-1"});
  expect_error([&] { wanda_prune(good, nullptr, {9, nullptr}, &status); }, {"prune_counts must be in [0, 8], got 9"});
  expect_error([&] { wanda_prune(good, nullptr, {-1, nullptr}, &status); }, {"prune_counts", "got -1"});
  expect_error([&] { wanda_prune(good, nullptr, {4, nullptr}, nullptr); }, {"status must not be null"});
  expect_error([&] { wanda_prune(view(1, 32769, 1), nullptr, {4, nullptr}, &status); }, {"at most 32768", "32769"});
  MatrixView other = good;
  other.dtype = DType::f64;
  expect_error([&] { wanda_prune(other, nullptr, {4, nullptr}, &status); }, {"dtype", "float64"});
  other = good;
  other.data = nullptr;
  expect_error([&] { nm_prune(other, nullptr, 2, 4, &status); }, {"[nm_prune] weight must not be null"});
  other.data = bytes + 1 - reinterpret_cast<std::uintptr_t>(bytes) % 2;
  expect_error([&] { nm_prune(other, nullptr, 2, 4, &status); }, {"aligned"});
  expect_error([&] { nm_prune(good, nullptr, 4, 4, &status); }, {"n must be in [1, 3], got 4"});
  expect_error([&] { nm_prune(good, nullptr, 1, 1, &status); }, {"m must be at least 2, got 1"});
  expect_error([&] { nm_prune(good, nullptr, 1, 3, &status); }, {"multiple of m = 3", "got 8"});
  const Batch<ConstMatrixView> scores{Batch<MatrixView>(good)};
  expect_error([&] { nm_mask(scores, 2, 4, MaskView{bytes, 4, 7, 8}, &status); },
               {"mask must be [1, 4, 8], got [1, 4, 7]"});
  expect_error([&] { nm_mask(scores, 2, 4, MaskView{bytes, 4, 8, 7}, &status); }, {"mask rows must not overlap", "7"});
  expect_error([&] { nm_mask(scores, 2, 4, MaskView{nullptr, 4, 8, 8}, &status); }, {"mask must not be null"});
}

TEST(CudaMasks, TellWhatWasIllegal) {
  using test::expect_error;
  MaskStatus status{};
  throw_if_illegal("wanda_prune", "weight", status, 10, 100);
  status.not_finite = ~std::uint64_t{1234};
  expect_error([&] { throw_if_illegal("wanda_prune", "W", status, 10, 100); },
               {"[wanda_prune] W must be finite", "row 2, column 34 of matrix 1"});
  expect_error([&] { throw_if_illegal("nm_mask", "scores", status, 20, 100, true); },
               {"not hold NaN", "row 12, column 34"});
  status.illegal_norm = ~std::uint64_t{7};
  expect_error([&] { throw_if_illegal("nm_prune", "W", status, 10, 100); },
               {"input_sq_norm must be finite", "feature 7"});
  status.illegal_count = ~std::uint64_t{13};
  expect_error([&] { throw_if_illegal("wanda_mask", "W", status, 10, 100); }, {"[0, 100]", "row 3 of matrix 1"});
}

}  // namespace
}  // namespace stun_ext::cuda
