// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "sparse/activations.hpp"
#include "sparse/matmul.hpp"
#include "stun_ext/matmul.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

using detail::Products;
using test::expect_error;
using test::Layout;
using test::Matrix;

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

Matrix pruned(DType dtype, std::int64_t rows, std::int64_t cols, double density, unsigned seed) {
  Matrix matrix(dtype, rows, cols, Layout::padded_rows);
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  matrix.fill([&](std::int64_t r, std::int64_t) {
    return uniform(generator) < density * (0.5 + static_cast<double>(r % 3) / 2) ? normal(generator) : 0.0;
  });
  return matrix;
}

Matrix tokens_of(DType dtype, std::int64_t tokens, std::int64_t cols, Layout layout) {
  Matrix x(dtype, tokens, cols, layout);
  std::mt19937 generator(7);
  x.fill_normal(generator);
  return x;
}

double epsilon(DType dtype) { return dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8; }

std::vector<double> values_of(const Matrix& matrix) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < matrix.view().rows; ++r) {
    for (std::int64_t c = 0; c < matrix.view().cols; ++c) values.push_back(matrix.get(r, c));
  }
  return values;
}

/// In float64; the bound is that of the header, and y's own rounding.
void expect_product(const Matrix& x, const Matrix& weight, const Matrix& y) {
  const auto cols = static_cast<std::size_t>(x.view().cols);
  const std::vector<double> of_x = values_of(x), of_weight = values_of(weight);
  for (std::int64_t m = 0; m < y.view().rows; ++m) {
    for (std::int64_t r = 0; r < y.view().cols; ++r) {
      const double* a = of_x.data() + static_cast<std::size_t>(m) * cols;
      const double* b = of_weight.data() + static_cast<std::size_t>(r) * cols;
      double sum = 0.0, magnitude = 0.0;
      for (std::size_t c = 0; c < cols; ++c) {
        sum += a[c] * b[c];
        magnitude += std::abs(a[c] * b[c]);
      }
      const double bound = static_cast<double>(cols) * 0x1p-23 * magnitude + epsilon(y.view().dtype) * std::abs(sum);
      ASSERT_NEAR(y.get(m, r), sum, bound * 1.01 + 1e-30) << "token " << m << ", row " << r;
    }
  }
}

TEST(Matmul, EveryTypeAndShape) {
  for (const DType dtype : kDtypes) {
    for (const DType x_dtype : kDtypes) {
      for (const std::int64_t rows : {1, 4, 7, 33}) {
        for (const std::int64_t cols : {1, 31, 32, 65, 1100}) {
          for (const std::int64_t tokens : {1, 2, 3, 4, 5, 9}) {
            SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << rows << " x " << cols << ", " << tokens
                                              << " tokens of " << name_of(x_dtype));
            const Matrix weight = pruned(dtype, rows, cols, 0.6, 5);
            const Matrix x = tokens_of(x_dtype, tokens, cols, Layout::row_major);
            Matrix packed_y(DType::f32, tokens, rows), dense_y(DType::f32, tokens, rows);
            packed_matmul(x.view(), pack(weight.view()), packed_y.view());
            expect_product(x, weight, packed_y);
            dense_matmul(x.view(), weight.view(), dense_y.view());
            expect_product(x, weight, dense_y);
          }
        }
      }
    }
  }
}

TEST(Matmul, EveryKindOfProducts) {
  for (const Products products : {Products::f32, Products::bf16, Products::tiles}) {
    if (!detail::has_products(products)) continue;
    for (const std::int64_t rows : {1, 31, 36, 68}) {
      for (const std::int64_t cols : {1, 33, 544, 1060}) {
        for (const std::int64_t tokens : {1, 15, 17, 33, 130, 261}) {
          SCOPED_TRACE(::testing::Message() << "products " << static_cast<int>(products) << ", " << rows << " x "
                                            << cols << ", " << tokens << " tokens");
          const Matrix weight = pruned(DType::bf16, rows, cols, 0.5, 6);
          const Matrix x = tokens_of(DType::bf16, tokens, cols, Layout::row_major);
          const PackedMatrix packed = pack(weight.view());
          Matrix y(DType::f32, tokens, rows), dense_y(DType::f32, tokens, rows);
          detail::multiply(products, x.view(), detail::rows_of(packed), DType::bf16, y.view(), default_executor());
          expect_product(x, weight, y);
          detail::multiply(products, x.view(), detail::rows_of(weight.view()), DType::bf16, dense_y.view(),
                           default_executor());
          expect_product(x, weight, dense_y);
        }
      }
    }
  }
}

TEST(Matmul, StridesAndTypesOfTokensAndResults) {
  const Matrix weight = pruned(DType::bf16, 45, 200, 0.5, 8);
  const PackedMatrix packed = pack(weight.view());
  for (const DType x_dtype : kDtypes) {
    for (const DType y_dtype : kDtypes) {
      for (const Layout layout : test::kLayouts) {
        const Matrix x = tokens_of(x_dtype, 6, 200, layout);
        Matrix y(y_dtype, 6, 45, layout), untouched = y;
        packed_matmul(x.view(), packed, y.view());
        expect_product(x, weight, y);
        // Around the elements nothing is written.
        for (std::int64_t m = 0; m < 6; ++m) {
          for (std::int64_t r = 0; r < 45; ++r) untouched.set(m, r, y.get(m, r));
        }
        EXPECT_EQ(untouched.bytes(), y.bytes());
      }
    }
  }
}

TEST(Matmul, ThreadsMakeNoDifference) {
  const Matrix weight = pruned(DType::bf16, 531, 1000, 0.5, 9);
  const PackedMatrix packed = pack(weight.view());
  for (const std::int64_t tokens : {1, 3, 20}) {
    const Matrix x = tokens_of(DType::bf16, tokens, 1000, Layout::row_major);
    const auto product = [&](int threads) {
      const test::Threads set(threads);
      Matrix y(DType::f32, tokens, 531);
      packed_matmul(x.view(), packed, y.view());
      return y.bytes();
    };
    const auto one = product(1);
    for (const int threads : {2, 3, 7}) EXPECT_EQ(product(threads), one) << threads;
  }
}

TEST(Matmul, NothingToDo) {
  const Matrix none(DType::bf16, 0, 40), thin(DType::bf16, 5, 0);
  Matrix x(DType::bf16, 3, 40), empty_x(DType::bf16, 3, 0), y(DType::f32, 3, 5), no_y(DType::f32, 3, 0);
  y.fill([](std::int64_t, std::int64_t) { return 7.0; });
  packed_matmul(x.view(), pack(none.view()), no_y.view());
  packed_matmul(empty_x.view(), pack(thin.view()), y.view());
  for (std::int64_t m = 0; m < 3; ++m) {
    for (std::int64_t r = 0; r < 5; ++r) EXPECT_EQ(y.get(m, r), 0.0);
  }
  y.fill([](std::int64_t, std::int64_t) { return 7.0; });
  dense_matmul(empty_x.view(), thin.view(), y.view());
  EXPECT_EQ(y.get(2, 4), 0.0);
}

TEST(Matmul, NotANumberStaysWithItsRowAndToken) {
  for (const DType dtype : kDtypes) {
    Matrix weight = pruned(dtype, 9, 70, 0.5, 10), x = tokens_of(dtype, 5, 70, Layout::row_major);
    weight.set(6, 33, test::kNaN);
    x.set(3, 0, test::kInf);
    Matrix y(DType::f32, 5, 9);
    packed_matmul(x.view(), pack(weight.view()), y.view());
    for (std::int64_t m = 0; m < 5; ++m) {
      for (std::int64_t r = 0; r < 9; ++r) EXPECT_EQ(std::isfinite(y.get(m, r)), r != 6 && m != 3) << m << ' ' << r;
    }
  }
}

TEST(Matmul, RoundsToNearestEven) {
  // Every half, what lies in the middle between it and the next, and the floats around that.
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const auto value = static_cast<float>(test::decode_half(half));
    EXPECT_EQ(detail::half_bits(value), half);
    EXPECT_EQ(detail::half_bits(-value), half | 0x8000);
    const double next = bits == 0x7bff ? 65536.0 : test::decode_half(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    EXPECT_EQ(detail::half_bits(middle), bits + (bits & 1)) << bits;
    EXPECT_EQ(detail::half_bits(std::nextafter(middle, 0.0f)), bits) << bits;
    EXPECT_EQ(detail::half_bits(std::nextafter(middle, 1e9f)), bits + 1) << bits;
  }
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const auto value = static_cast<float>(test::decode_bfloat16(static_cast<std::uint16_t>(bits)));
    EXPECT_EQ(detail::bfloat16_bits(value), bits);
    const double next = bits == 0x7f7f ? 0x1p128 : test::decode_bfloat16(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((static_cast<double>(value) + next) / 2);
    EXPECT_EQ(detail::bfloat16_bits(middle), bits + (bits & 1)) << bits;
    EXPECT_EQ(detail::bfloat16_bits(std::nextafter(middle, 0.0f)), bits) << bits;
  }
  EXPECT_TRUE(std::isnan(test::decode_half(detail::half_bits(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(test::decode_bfloat16(detail::bfloat16_bits(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(detail::half_bits(1e6f), 0x7c00);
  EXPECT_EQ(detail::bfloat16_bits(-std::numeric_limits<float>::infinity()), 0xff80);
}

TEST(Matmul, Errors) {
  const Matrix weight = pruned(DType::bf16, 6, 40, 0.5, 11), transposed(DType::bf16, 6, 40, Layout::transposed);
  const PackedMatrix packed = pack(weight.view());
  Matrix x(DType::bf16, 3, 40), wide(DType::bf16, 3, 41), numbers(DType::i64, 3, 40);
  Matrix y(DType::f32, 3, 6), tall(DType::f32, 4, 6), doubles(DType::f64, 3, 6);
  expect_error([&] { packed_matmul(wide.view(), packed, y.view()); },
               {"[packed_matmul] x must have the 40 columns of the weight, got [3, 41]"});
  expect_error([&] { packed_matmul(numbers.view(), packed, y.view()); }, {"[packed_matmul] x must be one of"});
  expect_error([&] { packed_matmul(x.view(), packed, tall.view()); }, {"[packed_matmul] y must be [3, 6], got [4, 6]"});
  expect_error([&] { packed_matmul(x.view(), packed, doubles.view()); }, {"[packed_matmul] y must be one of"});
  MatrixView overlapping = y.view();
  overlapping.row_stride = 0;
  expect_error([&] { packed_matmul(x.view(), packed, overlapping); }, {"[packed_matmul] y must not overlap itself"});
  expect_error([&] { dense_matmul(x.view(), transposed.view(), y.view()); },
               {"[dense_matmul] weight must have rows of contiguous elements, got column stride 6"});
}

}  // namespace
}  // namespace stun_ext
