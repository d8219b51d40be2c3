// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/saliency.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

TEST(WandaScores, HandCheckable) {
  Matrix weight(DType::f32, 2, 3), out(DType::f32, 2, 3);
  const double values[2][3] = {{1, -2, 0}, {-0.5, 4, 3}};
  weight.fill([&](std::int64_t r, std::int64_t c) { return values[r][c]; });
  const std::vector<float> squares = {4, 9, 0};
  wanda_scores(weight.view(), squares, out.view());
  const double expected[2][3] = {{2, 6, 0}, {1, 12, 0}};
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 3; ++c) {
      EXPECT_EQ(out.get(r, c), expected[r][c]);
      EXPECT_FALSE(std::signbit(out.get(r, c)));
    }
  }
}

TEST(WandaScores, IsTheFloat32ProductAtEveryDtypeAndLayout) {
  std::mt19937 generator(1);
  std::gamma_distribution<float> gamma(0.5f);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Layout layout : kLayouts) {
      for (const auto& [rows, cols] : {std::pair<int, int>{1, 1}, {3, 17}, {70, 33}, {2, 100}, {0, 5}, {5, 0}}) {
        Matrix weight(dtype, rows, cols, layout);
        weight.fill_normal(generator);
        std::vector<float> squares(static_cast<std::size_t>(cols));
        for (float& square : squares) square = gamma(generator);
        for (const Layout out_layout : kLayouts) {
          for (const Isa isa : cpu_info().supported) {
            const ForcedIsa forced(isa);
            Matrix out(DType::f32, rows, cols, out_layout), magnitude(DType::f32, rows, cols, out_layout);
            wanda_scores(weight.view(), squares, out.view());
            wanda_scores(weight.view(), {}, magnitude.view());
            for (int r = 0; r < rows; ++r) {
              for (int c = 0; c < cols; ++c) {
                const auto size = static_cast<float>(std::abs(weight.get(r, c)));
                ASSERT_EQ(static_cast<float>(out.get(r, c)), size * std::sqrt(squares[static_cast<std::size_t>(c)]));
                ASSERT_EQ(static_cast<float>(magnitude.get(r, c)), size);
              }
            }
          }
        }
      }
    }
  }
}

TEST(WandaScores, EachArgumentWrongAlone) {
  Matrix weight(DType::f32, 2, 3), out(DType::f32, 2, 3), small(DType::f32, 2, 2), half(DType::f16, 2, 3);
  weight.fill([](std::int64_t, std::int64_t) { return 1.0; });
  const std::vector<float> squares = {1, 2, 3};
  expect_error([&] { wanda_scores(weight.view(), squares, small.view()); }, {"[wanda_scores] out must be [2, 3]"});
  expect_error([&] { wanda_scores(weight.view(), squares, half.view()); }, {"out must be one of float32, got float16"});
  expect_error([&] { wanda_scores(weight.view(), std::vector<float>{1, 2}, out.view()); }, {"3 columns, got 2"});
  for (const float bad : {-1.0f, std::nanf(""), static_cast<float>(kInf)}) {
    expect_error([&] { wanda_scores(weight.view(), std::vector<float>{1, 2, bad}, out.view()); },
                 {"input_sq_norm must be finite and not negative", "for feature 2"});
  }
  Matrix wide(DType::f64, 2, 3);
  expect_error([&] { wanda_scores(wide.view(), squares, out.view()); },
               {"weight must be one of float32, float16, bfloat16, got float64"});
  weight.set(1, 2, -kInf);
  expect_error([&] { wanda_scores(weight.view(), squares, out.view()); },
               {"weight must be finite, got -inf in row 1, column 2"});
}

}  // namespace
}  // namespace stun_ext::test
