// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "stun_ext/distance.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

constexpr DType kRowTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f64};

long double reference(const Matrix& rows, std::int64_t i, std::int64_t j) {
  long double sum = 0;
  for (std::int64_t c = 0; c < rows.view().cols; ++c) {
    const long double d = static_cast<long double>(rows.get(i, c)) - static_cast<long double>(rows.get(j, c));
    sum += d * d;
  }
  return std::sqrt(sum);
}

std::vector<double> condensed(const Matrix& rows) {
  const auto n = static_cast<std::size_t>(rows.view().rows);
  std::vector<double> out(n * (n - 1) / 2);
  condensed_distances(rows.view(), out);
  return out;
}

TEST(PairwiseDistances, HandCheckable) {
  Matrix rows(DType::f32, 3, 2);
  rows.fill([](std::int64_t r, std::int64_t c) { return r == 1 ? (c == 0 ? 3.0 : 4.0) : 0.0; });
  for (const DType dtype : {DType::f32, DType::f64}) {
    Matrix out(dtype, 3, 3);
    pairwise_distances(rows.view(), false, out.view());
    const double expected[3][3] = {{0, 5, 0}, {5, 0, 5}, {0, 5, 0}};
    pairwise_distances(rows.view(), false, out.view());
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) EXPECT_EQ(out.get(i, j), expected[i][j]);
    }
    pairwise_distances(rows.view(), true, out.view());  // the Frobenius norm is 5
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) EXPECT_EQ(out.get(i, j), expected[i][j] / 5.0);
    }
  }
}

TEST(PairwiseDistances, AgreesWithLongDoubleAtEveryDtypeLayoutAndSize) {
  std::mt19937 generator(1);
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{1, 1},  {2, 1},    {2, 7},    {3, 8},    {5, 9},  {9, 31},
                                                         {33, 5}, {65, 255}, {17, 256}, {40, 300}, {8, 513}};
  for (const DType dtype : kRowTypes) {
    for (const Layout layout : kLayouts) {
      for (const auto& [n, d] : sizes) {
        Matrix rows(dtype, n, d, layout);
        rows.fill_normal(generator);
        const auto before = rows.bytes();
        Matrix out(DType::f64, n, n, layout);
        pairwise_distances(rows.view(), false, out.view());
        for (std::int64_t i = 0; i < n; ++i) {
          ASSERT_EQ(out.get(i, i), 0.0);
          for (std::int64_t j = 0; j < i; ++j) {
            const auto expected = static_cast<double>(reference(rows, i, j));
            ASSERT_NEAR(out.get(i, j), expected, 1e-14 * expected) << name_of(dtype) << ' ' << n << 'x' << d;
            ASSERT_EQ(out.get(i, j), out.get(j, i));
          }
        }
        ASSERT_EQ(rows.bytes(), before);
      }
    }
  }
}

TEST(PairwiseDistances, SameBitsAtEveryThreadCountAndLayout) {
  std::mt19937 generator(3);
  Matrix rows(DType::bf16, 131, 77);
  rows.fill_normal(generator);
  std::vector<double> first;
  {
    const Threads scope(1);
    first = condensed(rows);
  }
  for (const Layout layout : kLayouts) {
    Matrix same(DType::bf16, 131, 77, layout);
    same.fill([&](std::int64_t r, std::int64_t c) { return rows.get(r, c); });
    for (const int threads : {1, 2, 3, 7}) {
      const Threads scope(threads);
      ASSERT_EQ(condensed(same), first);
    }
  }
}

TEST(PairwiseDistances, NearDuplicatesKeepTheirOrder) {
  // A large common mean and distances that float32 sums of squares would lose or reorder.
  std::mt19937 generator(4);
  std::uniform_int_distribution<int> step(-40, 40);
  Matrix rows(DType::f32, 40, 512);
  rows.fill([&](std::int64_t, std::int64_t) { return 1000.0 + step(generator) * 0x1p-14; });
  const std::vector<double> distances = condensed(rows);
  std::vector<std::pair<long double, std::size_t>> exact;
  std::size_t pair = 0;
  for (std::int64_t i = 0; i < 40; ++i) {
    for (std::int64_t j = i + 1; j < 40; ++j) exact.emplace_back(reference(rows, i, j), pair++);
  }
  std::sort(exact.begin(), exact.end());
  for (std::size_t k = 1; k < exact.size(); ++k) {
    const double lower = distances[exact[k - 1].second], higher = distances[exact[k].second];
    if (exact[k - 1].first == exact[k].first) {
      EXPECT_EQ(lower, higher);
    } else {
      EXPECT_LT(lower, higher);
    }
  }
}

TEST(PairwiseDistances, DuplicatesAndZeroRowsAreAtZero) {
  Matrix rows(DType::f16, 4, 100);
  rows.fill([](std::int64_t r, std::int64_t c) { return r < 2 ? 0.1 * static_cast<double>(c) : 0.0; });
  Matrix out(DType::f32, 4, 4);
  pairwise_distances(rows.view(), false, out.view());
  EXPECT_EQ(out.get(0, 1), 0.0);
  EXPECT_EQ(out.get(2, 3), 0.0);
  EXPECT_GT(out.get(0, 2), 0.0);
}

TEST(PairwiseDistances, FrobeniusNormDividesInFloat64) {
  std::mt19937 generator(5);
  Matrix rows(DType::f32, 37, 300);
  rows.fill_normal(generator);
  long double squares = 0;
  for (std::int64_t r = 0; r < 37; ++r) {
    for (std::int64_t c = 0; c < 300; ++c) squares += static_cast<long double>(rows.get(r, c)) * rows.get(r, c);
  }
  Matrix out(DType::f64, 37, 37);
  pairwise_distances(rows.view(), true, out.view());
  for (std::int64_t i = 0; i < 37; ++i) {
    for (std::int64_t j = 0; j < i; ++j) {
      const auto expected = static_cast<double>(reference(rows, i, j) / std::sqrt(squares));
      ASSERT_NEAR(out.get(i, j), expected, 1e-14 * expected);
    }
  }
}

TEST(PairwiseDistances, EachArgumentWrongAlone) {
  Matrix rows(DType::f32, 3, 2);
  rows.fill([](std::int64_t, std::int64_t) { return 0.0; });
  Matrix out(DType::f32, 3, 3), small(DType::f32, 2, 3), half(DType::f16, 3, 3), integers(DType::i64, 3, 2);
  expect_error([&] { pairwise_distances(rows.view(), false, small.view()); },
               {"[pairwise_distances] out must be [3, 3], got [2, 3]"});
  expect_error([&] { pairwise_distances(rows.view(), false, half.view()); },
               {"out must be one of float32, float64, got float16"});
  expect_error([&] { pairwise_distances(integers.view(), false, out.view()); },
               {"rows must be one of float32, float16, bfloat16, float64, got int64"});
  expect_error([&] { pairwise_distances(rows.view(), true, out.view()); }, {"must not all be zero"});
  Matrix huge(DType::f64, 2, 2), distances(DType::f64, 2, 2);
  huge.fill([](std::int64_t r, std::int64_t) { return r == 0 ? 1e200 : -1e200; });
  expect_error([&] { pairwise_distances(huge.view(), true, distances.view()); }, {"Frobenius norm to be finite"});
  Matrix empty(DType::f32, 3, 0), none(DType::f32, 0, 0);
  expect_error([&] { pairwise_distances(empty.view(), false, out.view()); }, {"[n >= 1, d >= 1], got [3, 0]"});
  expect_error([&] { pairwise_distances(none.view(), false, none.view()); }, {"[n >= 1, d >= 1], got [0, 0]"});
  std::vector<double> values(2);
  expect_error([&] { condensed_distances(rows.view(), values); },
               {"[condensed_distances] out must hold n(n-1)/2 = 3 values for n = 3, got 2"});
}

TEST(PairwiseDistances, NothingIsWrittenWhenRefused) {
  Matrix rows(DType::f32, 3, 2), out(DType::f32, 3, 3);
  rows.fill([](std::int64_t r, std::int64_t) { return r == 2 ? kNaN : 1.0; });
  const auto before = out.bytes();
  expect_error([&] { pairwise_distances(rows.view(), false, out.view()); }, {"row 2"});
  EXPECT_EQ(out.bytes(), before);
}

TEST(CoactivationDistances, HandCheckable) {
  const double counts[3][3] = {{0, 2, 4}, {2, 0, 0}, {4, 0, 0}};  // mean 12/9
  for (const DType dtype : {DType::f32, DType::f64, DType::i64}) {
    Matrix a(dtype, 3, 3, Layout::strided), out(DType::f64, 3, 3);
    a.fill([&](std::int64_t i, std::int64_t j) { return counts[i][j]; });
    coactivation_distances(a.view(), out.view());
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        EXPECT_EQ(out.get(i, j), -counts[i][j] / (12.0 / 9.0));
        if (counts[i][j] == 0) {
          EXPECT_FALSE(std::signbit(out.get(i, j)));
        }
      }
    }
  }
}

TEST(CoactivationDistances, EachArgumentWrongAlone) {
  auto counts = [](double diagonal, double upper, double lower) {
    Matrix a(DType::f64, 2, 2);
    a.set(0, 0, 0), a.set(0, 1, upper), a.set(1, 0, lower), a.set(1, 1, diagonal);
    return a;
  };
  Matrix out(DType::f32, 2, 2), small(DType::f32, 2, 1), wide(DType::f64, 2, 3), half(DType::f16, 2, 2);
  const Matrix good = counts(0, 1, 1);
  coactivation_distances(good.view(), out.view());
  expect_error([&] { coactivation_distances(counts(1, 1, 1).view(), out.view()); }, {"zero diagonal, got 1 in row 1"});
  expect_error([&] { coactivation_distances(counts(0, 1, 2).view(), out.view()); }, {"symmetric", "got 2 at (1, 0)"});
  expect_error([&] { coactivation_distances(counts(0, 0, 0).view(), out.view()); }, {"mean zero"});
  expect_error([&] { coactivation_distances(counts(0, kNaN, 1).view(), out.view()); }, {"finite", "row 0, column 1"});
  expect_error([&] { coactivation_distances(counts(0, 1, kInf).view(), out.view()); }, {"finite", "row 1, column 0"});
  expect_error([&] { coactivation_distances(wide.view(), out.view()); }, {"square", "[2, 3]"});
  expect_error([&] { coactivation_distances(half.view(), out.view()); }, {"counts must be one of", "float16"});
  expect_error([&] { coactivation_distances(good.view(), small.view()); },
               {"[coactivation_distances] out must be [2, 2]"});
}

TEST(MixedDistances, IsTheSumOfBothInFloat64) {
  std::mt19937 generator(6);
  Matrix rows(DType::f32, 12, 20), a(DType::i64, 12, 12);
  rows.fill_normal(generator);
  std::uniform_int_distribution<int> count(0, 50);
  for (int i = 0; i < 12; ++i) {
    a.set(i, i, 0);
    for (int j = 0; j < i; ++j) {
      const int value = count(generator);
      a.set(i, j, value), a.set(j, i, value);
    }
  }
  Matrix router(DType::f64, 12, 12), coactivation(DType::f64, 12, 12), mixed(DType::f64, 12, 12);
  for (const bool divide : {false, true}) {
    for (const double mix : {0.0, 0.3, -2.0}) {
      pairwise_distances(rows.view(), divide, router.view());
      coactivation_distances(a.view(), coactivation.view());
      mixed_distances(rows.view(), a.view(), mix, divide, mixed.view());
      for (int i = 0; i < 12; ++i) {
        for (int j = 0; j < 12; ++j) {
          ASSERT_NEAR(mixed.get(i, j), router.get(i, j) + mix * coactivation.get(i, j), 1e-13);
          ASSERT_EQ(mixed.get(i, j), mixed.get(j, i));
        }
      }
    }
  }
}

TEST(MixedDistances, EachArgumentWrongAlone) {
  Matrix rows(DType::f32, 2, 3), a(DType::f32, 2, 2), bigger(DType::f32, 3, 3), out(DType::f32, 2, 2);
  rows.fill([](std::int64_t r, std::int64_t) { return static_cast<double>(r); });
  a.fill([](std::int64_t i, std::int64_t j) { return i == j ? 0.0 : 1.0; });
  bigger.fill([](std::int64_t i, std::int64_t j) { return i == j ? 0.0 : 1.0; });
  mixed_distances(rows.view(), a.view(), 1.0, false, out.view());
  expect_error([&] { mixed_distances(rows.view(), a.view(), kInf, false, out.view()); },
               {"[mixed_distances] mix", "inf"});
  expect_error([&] { mixed_distances(rows.view(), a.view(), kNaN, false, out.view()); }, {"mix must be finite"});
  expect_error([&] { mixed_distances(rows.view(), bigger.view(), 1.0, false, out.view()); }, {"got 2 and 3"});
  expect_error([&] { mixed_distances(rows.view(), a.view(), 1.0, false, bigger.view()); }, {"out must be [2, 2]"});
  rows.set(1, 2, kNaN);
  expect_error([&] { mixed_distances(rows.view(), a.view(), 1.0, false, out.view()); }, {"rows", "row 1, column 2"});
}

}  // namespace
}  // namespace stun_ext::test
