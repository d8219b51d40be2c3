// SPDX-License-Identifier: Apache-2.0
// How distances are summed: the documented order and form, the same bits from every way to get one, and the error
// bound.
#include <algorithm>
#include <numeric>
#include <utility>

#include "distance/distance.hpp"
#include "stun_ext/distance.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

constexpr double kUnit = 0x1p-53;

// Blocks of 1024 columns, eight chains in each, as kernels/distance.hpp has it; term(c, sum) adds that of a column.
template <class Term>
double sum_in_order(std::int64_t cols, Term&& term) {
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < cols; begin += 1024) {
    double chain[8] = {};
    for (std::int64_t c = begin; c < std::min<std::int64_t>(begin + 1024, cols); ++c)
      chain[c % 8] = term(c, chain[c % 8]);
    double block = 0.0;
    for (const double each : chain) block += each;
    sum += block;
  }
  return sum;
}

double product(const Matrix& rows, std::int64_t i, std::int64_t j) {
  return sum_in_order(rows.view().cols,
                      [&](std::int64_t c, double sum) { return std::fma(rows.get(i, c), rows.get(j, c), sum); });
}

double differences(const Matrix& rows, std::int64_t i, std::int64_t j) {
  return sum_in_order(rows.view().cols, [&](std::int64_t c, double sum) {
    const double d = rows.get(i, c) - rows.get(j, c);
    return std::fma(d, d, sum);
  });
}

// d² in the documented form; tells which it was.
double documented(const Matrix& rows, std::int64_t i, std::int64_t j, bool& by_differences) {
  const double sum = product(rows, i, i) + product(rows, j, j);
  const double squared = sum - 2.0 * product(rows, i, j);
  by_differences = rows.view().cols < 64 || !(sum >= 0x1p-900 && sum <= 0x1p1000) || !(squared >= sum / 16.0);
  return by_differences ? differences(rows, i, j) : squared;
}

std::vector<double> condensed(const Matrix& rows) {
  const auto n = static_cast<std::size_t>(rows.view().rows);
  std::vector<double> out(n * (n - 1) / 2);
  condensed_distances(rows.view(), out);
  return out;
}

std::size_t place(std::int64_t n, std::int64_t i, std::int64_t j) {
  return static_cast<std::size_t>(i * (2 * n - i - 1) / 2 + (j - i - 1));
}

long double exact(const Matrix& rows, std::int64_t i, std::int64_t j) {
  long double sum = 0;
  for (std::int64_t c = 0; c < rows.view().cols; ++c) {
    const long double d = static_cast<long double>(rows.get(i, c)) - static_cast<long double>(rows.get(j, c));
    sum += d * d;
  }
  return std::sqrt(sum);
}

// Rows around a few centres, so that some pairs cancel and others do not.
Matrix clustered(DType dtype, std::int64_t n, std::int64_t d, double spread, unsigned seed,
                 Layout layout = Layout::row_major) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> centres(static_cast<std::size_t>(5 * d));
  for (double& value : centres) value = normal(generator);
  Matrix rows(dtype, n, d, layout);
  rows.fill([&](std::int64_t r, std::int64_t c) {
    return centres[static_cast<std::size_t>(r % 5 * d + c)] + spread * normal(generator);
  });
  return rows;
}

TEST(DistanceSums, AreTheDocumentedOnes) {
  // To the bit, for every instruction set and thread count; sizes around lanes, blocks, groups and tiles.
  const std::pair<std::int64_t, std::int64_t> sizes[] = {
      {19, 1}, {19, 7}, {19, 63}, {19, 64}, {19, 65}, {7, 1023}, {9, 1024}, {25, 1025}, {5, 2500}, {13, 17 * 1024 + 3}};
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const auto& [n, d] : sizes) {
      const Matrix rows = clustered(dtype, n, d, 0.05, static_cast<unsigned>(d));
      std::vector<double> expected;
      std::int64_t of_differences = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = i + 1; j < n; ++j) {
          bool by_differences;
          expected.push_back(std::sqrt(documented(rows, i, j, by_differences)));
          of_differences += by_differences;
        }
      }
      if (d >= 64 && n > 5) {  // both forms are there
        ASSERT_GT(of_differences, 0);
        ASSERT_LT(of_differences, n * (n - 1) / 2);
      }
      for (const Isa isa : cpu_info().supported) {
        const ForcedIsa forced(isa);
        for (const int threads : {1, 3}) {
          const Threads scope(threads);
          ASSERT_EQ(condensed(rows), expected) << name_of(isa) << ' ' << n << 'x' << d << ' ' << threads;
        }
      }
    }
  }
}

// The few rows, strips of rows, several strips and several steps over the columns, with none, some and nearly all pairs
// by differences, and by all threads: always the bits of the single pair.
TEST(DistanceSums, MatrixBlockAndPairAgreeToTheBit) {
  struct Case {
    std::int64_t n, d;
    double mean, spread;
  };
  const Case cases[] = {{150, 100, 0.0, 1.0}, {150, 1100, 0.0, 0.1}, {150, 100, 30.0, 1.0},  {193, 64, 0.0, 0.1},
                        {300, 80, 30.0, 1.0}, {230, 130, 0.0, 0.01}, {193, 11000, 3.0, 1.0}, {1160, 64, 0.0, 0.1}};
  for (const Case& each : cases) {
    Matrix rows = clustered(DType::f32, each.n, each.d, each.spread, 3);
    for (std::int64_t r = 0; r < each.n; ++r) {
      for (std::int64_t c = 0; c < each.d; ++c) rows.set(r, c, rows.get(r, c) + each.mean);
    }
    const std::vector<double> distances = condensed(rows);
    std::mt19937 generator(4);
    std::vector<std::uint32_t> index(static_cast<std::size_t>(each.n));
    std::iota(index.begin(), index.end(), 0u);
    std::shuffle(index.begin(), index.end(), generator);
    detail::SquaredDistanceBlock block(each.d);
    for (const Isa isa : cpu_info().supported) {
      if (isa == Isa::scalar && each.d > 10000) continue;
      const ForcedIsa forced(isa);
      ASSERT_EQ(condensed(rows), distances) << name_of(isa);
      for (const auto& [na, nb] : {std::pair<std::int64_t, std::int64_t>{1, 9}, {9, 1}, {3, 50}, {12, 12}, {53, 61}}) {
        std::vector<double> squared(static_cast<std::size_t>(na * nb));
        block.compute(rows.view(), index.data(), na, index.data() + na, nb, squared.data());
        for (std::int64_t k = 0; k < na * nb; ++k) {
          const std::int64_t a = index[static_cast<std::size_t>(k / nb)],
                             b = index[static_cast<std::size_t>(na + k % nb)];
          ASSERT_EQ(std::sqrt(squared[static_cast<std::size_t>(k)]),
                    distances[place(each.n, std::min(a, b), std::max(a, b))])
              << name_of(isa) << ' ' << each.n << 'x' << each.d << ": " << na << 'x' << nb;
        }
      }
    }
    for (int k = 0; k < 300; ++k) {
      const std::int64_t i = generator() % static_cast<unsigned>(each.n - 1);
      const std::int64_t j = i + 1 + generator() % static_cast<unsigned>(each.n - 1 - i);
      ASSERT_EQ(std::sqrt(detail::squared_distance(rows.view(), i, j)), distances[place(each.n, i, j)]) << each.n;
      ASSERT_EQ(std::sqrt(detail::squared_distance(rows.view(), j, i)), distances[place(each.n, i, j)]) << each.n;
      bool by_differences;
      if (k < 20) {
        ASSERT_EQ(std::sqrt(documented(rows, i, j, by_differences)), distances[place(each.n, i, j)]);
      }
    }
  }
}

TEST(DistanceSums, SameBitsInEveryDtypeThatHoldsTheValues) {
  std::mt19937 generator(5);
  for (const std::int64_t n : {40, 200}) {
    Matrix rows(DType::bf16, n, 1030);
    std::uniform_int_distribution<int> pick(-120, 120);  // exact in float16 as well
    rows.fill([&](std::int64_t r, std::int64_t) { return r % 3 == 0 ? 100.0 : pick(generator) / 64.0; });
    const std::vector<double> distances = condensed(rows);
    for (const DType dtype : {DType::f32, DType::f16, DType::f64}) {
      for (const Layout layout : kLayouts) {
        Matrix same(dtype, n, 1030, layout);
        same.fill([&](std::int64_t r, std::int64_t c) { return rows.get(r, c); });
        ASSERT_EQ(condensed(same), distances) << name_of(dtype);
        for (const std::int64_t j : {2, 17, 39}) {
          ASSERT_EQ(std::sqrt(detail::squared_distance(same.view(), 1, j)), distances[place(n, 1, j)]);
        }
      }
    }
  }
}

TEST(DistanceSums, ErrorStaysBelowTheStatedBound) {
  // Every degree of cancellation, so around the threshold too.
  std::mt19937 generator(6);
  std::normal_distribution<double> normal;
  for (const std::int64_t d : {64, 700, 5000}) {
    const double terms = 128.0 + 8.0 + std::ceil(static_cast<double>(d) / 1024.0);
    const double bound = 16.0 * (terms + 2.0) * kUnit;
    std::vector<double> centre(static_cast<std::size_t>(d));
    for (double& value : centre) value = normal(generator);
    Matrix rows(DType::f64, 60, d);
    rows.fill([&](std::int64_t r, std::int64_t c) {
      return centre[static_cast<std::size_t>(c)] + std::exp2(3.0 - 0.25 * static_cast<double>(r)) * normal(generator);
    });
    const std::vector<double> distances = condensed(rows);
    double worst = 0.0;
    for (std::int64_t i = 0; i < 60; ++i) {
      for (std::int64_t j = i + 1; j < 60; ++j) {
        const long double expected = exact(rows, i, j);
        const double error = static_cast<double>(std::abs(distances[place(60, i, j)] - expected) / expected);
        worst = std::max(worst, error);
      }
    }
    EXPECT_LT(worst, bound) << d;
    EXPECT_LT(worst, 2e-14) << d;  // what rounding that does not conspire leaves
  }
}

TEST(DistanceSums, NearDuplicatesAroundACommonMeanKeepTheirOrder) {
  // From 1e-3 to 1e-8 apart: sums of squares of the rows themselves would have no digit left.
  std::mt19937 generator(7);
  std::normal_distribution<double> normal;
  for (const double step : {1e-3, 1e-5, 1e-8}) {
    const std::int64_t n = 200, d = 96;
    std::vector<double> centre(static_cast<std::size_t>(d));
    for (double& value : centre) value = normal(generator);
    Matrix rows(DType::f64, n, d);
    rows.fill(
        [&](std::int64_t, std::int64_t c) { return centre[static_cast<std::size_t>(c)] + step * normal(generator); });
    const std::vector<double> distances = condensed(rows);
    std::vector<std::pair<long double, double>> pairs;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j) pairs.emplace_back(exact(rows, i, j), distances[place(n, i, j)]);
    }
    std::sort(pairs.begin(), pairs.end());
    for (std::size_t k = 0; k < pairs.size(); ++k) {
      const auto expected = static_cast<double>(pairs[k].first);
      ASSERT_NEAR(pairs[k].second, expected, 1e-14 * expected);
      if (k > 0 && pairs[k].first > pairs[k - 1].first * (1.0L + 1e-14L)) {
        ASSERT_GT(pairs[k].second, pairs[k - 1].second);
      }
    }
  }
}

TEST(DistanceSums, WholeNumbersTieAndAreExact) {
  std::mt19937 generator(8);
  std::uniform_int_distribution<int> pick(-3, 3);
  for (const double mean : {0.0, 1000.0}) {
    Matrix rows(DType::f32, 70, 200);
    rows.fill([&](std::int64_t, std::int64_t) { return mean + pick(generator); });
    for (std::int64_t c = 0; c < 200; ++c) rows.set(69, c, rows.get(3, c));  // a duplicate
    const std::vector<double> distances = condensed(rows);
    for (std::int64_t i = 0; i < 70; ++i) {
      for (std::int64_t j = i + 1; j < 70; ++j) {
        std::int64_t squared = 0;
        for (std::int64_t c = 0; c < 200; ++c) {
          const auto difference = static_cast<std::int64_t>(rows.get(i, c) - rows.get(j, c));
          squared += difference * difference;
        }
        ASSERT_EQ(distances[place(70, i, j)], std::sqrt(static_cast<double>(squared)));
      }
    }
    EXPECT_EQ(distances[place(70, 3, 69)], 0.0);
  }
}

TEST(DistanceSums, RangeOfFloat64) {
  // Squares beyond what float64 holds, or below; rows of ordinary size stay as they are beside them.
  std::mt19937 generator(9);
  std::normal_distribution<double> normal;
  const double scales[] = {1.0, 1e150, 1e-140, 1e-152, 1e200, 0.0};
  for (const std::int64_t n : {24, 210}) {
    Matrix rows(DType::f64, n, 70);
    rows.fill([&](std::int64_t r, std::int64_t) { return scales[r % 6] * normal(generator); });
    const std::vector<double> distances = condensed(rows);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j) {
        const double distance = distances[place(n, i, j)];
        if (i % 6 == 4 || j % 6 == 4) {
          ASSERT_EQ(distance, kInf);
          continue;
        }
        const auto expected = static_cast<double>(exact(rows, i, j));
        ASSERT_NEAR(distance, expected, 1e-13 * expected) << i << ' ' << j;
        ASSERT_EQ(distance, std::sqrt(detail::squared_distance(rows.view(), i, j)));
      }
    }
  }
}

TEST(DistanceSums, RowsThatAreNotFiniteAreNamed) {
  for (const std::int64_t n : {5, 200}) {  // few rows, and many
    for (const double value : {kNaN, kInf, -kInf}) {
      Matrix rows(DType::f32, n, 90), out(DType::f32, n, n);
      rows.fill([](std::int64_t, std::int64_t) { return 1.0; });
      rows.set(3, 88, value);
      rows.set(4, 1, kNaN);
      const auto before = out.bytes();
      expect_error([&] { pairwise_distances(rows.view(), false, out.view()); }, {"row 3, column 88"});
      EXPECT_EQ(out.bytes(), before);
    }
  }
}

}  // namespace
}  // namespace stun_ext::test
