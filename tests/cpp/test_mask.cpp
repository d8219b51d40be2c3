// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "stun_ext/mask.hpp"
#include "stun_ext/saliency.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32, DType::f16, DType::bf16};

/// A mask with padding between its rows and guards in it.
struct Mask {
  Mask(std::int64_t rows, std::int64_t cols)
      : bytes(static_cast<std::size_t>(rows * (cols + 3) + 1), 7), view{bytes.data(), rows, cols, cols + 3} {}
  bool keeps(std::int64_t row, std::int64_t col) const {
    const std::uint8_t value = bytes[static_cast<std::size_t>(row * view.row_stride + col)];
    EXPECT_LE(value, 1);
    return value == 1;
  }
  bool guards_hold() const {
    for (std::int64_t row = 0; row < view.rows; ++row) {
      for (int k = 0; k < 3; ++k) {
        if (bytes[static_cast<std::size_t>(row * view.row_stride + view.cols + k)] != 7) return false;
      }
    }
    return true;
  }
  std::vector<std::uint8_t> bytes;
  MaskView view;
};

/// Columns that go: the first of a stable ascending sort of the scores.
std::vector<bool> pruned_reference(const std::vector<float>& scores, std::int64_t count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
  std::vector<bool> pruned(scores.size(), false);
  for (std::int64_t k = 0; k < count; ++k) pruned[order[static_cast<std::size_t>(k)]] = true;
  return pruned;
}

std::vector<float> scores_of_row(const Matrix& weight, const std::vector<float>& squares, std::int64_t row) {
  std::vector<float> scores;
  for (std::int64_t c = 0; c < weight.view().cols; ++c) {
    const auto size = static_cast<float>(std::abs(weight.get(row, c)));
    scores.push_back(squares.empty() ? size : size * std::sqrt(squares[static_cast<std::size_t>(c)]));
  }
  return scores;
}

/// Weights of one of several kinds: 0 normal, 1 few values (ties), 2 all equal, 3 many zeros of both signs, 4 every
/// magnitude that the type has, 5 scores that differ in their last bits, 6 rows of very different size.
constexpr int kKinds = 7;

void fill(Matrix& weight, std::mt19937& generator, int kind) {
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> few(-3, 3), exponent(-14, 15), sign(0, 1), last(0, 40);
  weight.fill([&](std::int64_t r, std::int64_t) -> double {
    if (kind == 1) return few(generator);
    if (kind == 2) return 0.5;
    if (kind == 3) return few(generator) == 0 ? normal(generator) : sign(generator) == 0 ? 0.0 : -0.0;
    if (kind == 4) return std::ldexp(normal(generator), exponent(generator)) * 0.1;
    if (kind == 5) return 1 + std::ldexp(last(generator), -23);
    if (kind == 6) return std::ldexp(normal(generator), static_cast<int>(r % 3) * 5 - 5);
    return normal(generator);
  });
}

std::vector<float> some_squares(std::int64_t cols, std::mt19937& generator) {
  std::uniform_int_distribution<int> square(0, 4);
  std::vector<float> squares;
  for (std::int64_t c = 0; c < cols; ++c) squares.push_back(static_cast<float>(square(generator)));
  return squares;
}

/// `pruned(r, c)` of the weights are +0 and the others have kept their bits.
template <class Pruned>
void expect_zeroed(const Matrix& before, const Matrix& after, std::int64_t zeros, Pruned&& pruned) {
  Matrix expected = before;
  std::int64_t expected_zeros = 0;
  for (std::int64_t r = 0; r < before.view().rows; ++r) {
    for (std::int64_t c = 0; c < before.view().cols; ++c) {
      if (pruned(r, c)) expected.set(r, c, 0.0);
      expected_zeros += expected.get(r, c) == 0.0;
    }
  }
  ASSERT_EQ(after.bytes(), expected.bytes());  // guards among them
  ASSERT_EQ(zeros, expected_zeros);
}

/// Against a stable sort, with every instruction set.
void expect_pruned(DType dtype, Layout layout, std::int64_t rows, std::int64_t cols, int kind, bool with_norm,
                   std::mt19937& generator) {
  Matrix weight(dtype, rows, cols, layout);
  fill(weight, generator, kind);
  const std::vector<float> squares = with_norm ? some_squares(cols, generator) : std::vector<float>();
  std::vector<std::int64_t> counts;
  std::vector<std::vector<bool>> pruned;
  std::uniform_int_distribution<std::int64_t> any(0, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    counts.push_back(r % 5 == 3 ? 0 : r % 5 == 4 ? cols : any(generator));
    pruned.push_back(pruned_reference(scores_of_row(weight, squares, r), counts.back()));
  }
  const auto goes = [&](std::int64_t r, std::int64_t c) {
    return pruned[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
  };
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    Mask mask(rows, cols);
    wanda_mask(weight.view(), squares, counts, mask.view);
    ASSERT_TRUE(mask.guards_hold());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(mask.keeps(r, c), !goes(r, c)) << name_of(isa) << ' ' << name_of(dtype) << ' ' << r << ',' << c;
      }
    }
    Matrix by_mask = weight, in_place = weight;
    apply_mask(by_mask.view(), mask.view);
    const std::int64_t zeros = wanda_prune(in_place.view(), squares, counts);
    ASSERT_EQ(by_mask.bytes(), in_place.bytes());
    expect_zeroed(weight, in_place, zeros, goes);
  }
}

TEST(WandaMask, HandCheckable) {
  Matrix weight(DType::bf16, 2, 4);
  const double values[2][4] = {{1, -3, 2, 4}, {2, 2, -2, 2}};
  weight.fill([&](std::int64_t r, std::int64_t c) { return values[r][c]; });
  Mask mask(2, 4);
  wanda_mask(weight.view(), std::vector<float>{16, 1, 1, 0}, std::vector<std::int64_t>{2, 2}, mask.view);
  // Scores 4 3 2 0 and 8 2 2 0.
  const bool kept[2][4] = {{true, true, false, false}, {true, false, true, false}};
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 4; ++c) EXPECT_EQ(mask.keeps(r, c), kept[r][c]);
  }
}

TEST(WandaMask, MatchesAStableSortAtEveryDtypeLayoutSizeAndKind) {
  std::mt19937 generator(1);
  for (const DType dtype : kWeightTypes) {
    for (const Layout layout : kLayouts) {
      for (const auto& [rows, cols] : {std::pair<int, int>{1, 1},
                                       {5, 2},
                                       {6, 3},
                                       {5, 15},
                                       {7, 16},
                                       {5, 17},
                                       {40, 33},
                                       {66, 64},
                                       {41, 300},
                                       {6, 900}}) {
        for (int kind = 0; kind < kKinds; ++kind) {
          for (const bool with_norm : {false, true}) {
            expect_pruned(dtype, layout, rows, cols, kind, with_norm, generator);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(WandaMask, MatchesAStableSortOnLongRows) {  // the first cut is looked for in a sample, the next near the last
  std::mt19937 generator(6);
  for (const DType dtype : kWeightTypes) {
    for (int kind = 0; kind < kKinds; ++kind) {
      expect_pruned(dtype, Layout::row_major, 7, 4097 + 64 * kind, kind, kind % 2 == 0, generator);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(WandaMask, EmptyShapes) {
  std::mt19937 generator(2);
  expect_pruned(DType::bf16, Layout::row_major, 0, 5, 0, true, generator);
  expect_pruned(DType::bf16, Layout::transposed, 5, 0, 0, true, generator);
}

TEST(WandaMask, OverflowingAndSubnormalScoresStillOrder) {
  Matrix weight(DType::f32, 1, 4);
  const double values[4] = {3e38, 1e-45, 3e38, 2e-45};
  weight.fill([&](std::int64_t, std::int64_t c) { return values[c]; });
  Mask mask(1, 4);
  wanda_mask(weight.view(), std::vector<float>{9, 1, 9, 1}, std::vector<std::int64_t>{3}, mask.view);
  EXPECT_FALSE(mask.keeps(0, 0));  // both overflow: a tie, the lower column goes
  EXPECT_FALSE(mask.keeps(0, 1));
  EXPECT_TRUE(mask.keeps(0, 2));
  EXPECT_FALSE(mask.keeps(0, 3));
}

TEST(WandaMask, SameAtEveryThreadCount) {
  std::mt19937 generator(3);
  for (const Layout layout : {Layout::row_major, Layout::transposed}) {
    Matrix weight(DType::bf16, 500, 300, layout);
    fill(weight, generator, 1);
    const std::vector<float> squares(300, 2.0f);
    const std::vector<std::int64_t> counts(500, 137);
    std::vector<std::uint8_t> first;
    std::vector<unsigned char> pruned;
    for (const int threads : {1, 2, 3, 7}) {
      const Threads scope(threads);
      Mask mask(500, 300);
      Matrix copy = weight;
      wanda_mask(weight.view(), squares, counts, mask.view);
      const std::int64_t zeros = wanda_prune(copy.view(), squares, counts);
      if (first.empty()) first = mask.bytes, pruned = copy.bytes();
      ASSERT_EQ(mask.bytes, first);
      ASSERT_EQ(copy.bytes(), pruned);
      ASSERT_GE(zeros, 500 * 137);
    }
  }
}

TEST(WandaMask, EachArgumentWrongAlone) {
  Matrix weight(DType::f32, 2, 3), wide(DType::f64, 2, 3);
  weight.fill([](std::int64_t, std::int64_t) { return 1.0; });
  const std::vector<float> squares = {1, 2, 3};
  const std::vector<std::int64_t> counts = {1, 2};
  Mask mask(2, 3), small(2, 2);
  const auto mask_before = mask.bytes;
  const auto weight_before = weight.bytes();
  expect_error([&] { wanda_mask(weight.view(), squares, counts, small.view); },
               {"[wanda_mask] mask must be [2, 3], got [2, 2]"});
  expect_error([&] { wanda_mask(weight.view(), squares, counts, {nullptr, 2, 3, 3}); }, {"mask must not be null"});
  expect_error([&] { wanda_mask(weight.view(), squares, counts, {mask.view.data, 2, 3, 2}); }, {"row stride 2"});
  expect_error([&] { wanda_mask(weight.view(), squares, std::vector<std::int64_t>{1}, mask.view); }, {"2 rows, got 1"});
  for (const std::int64_t bad : {-1, 4}) {
    const std::vector<std::int64_t> wrong = {1, bad};
    const std::string got = "prune_counts must be in [0, 3], got " + std::to_string(bad) + " for row 1";
    expect_error([&] { wanda_mask(weight.view(), squares, wrong, mask.view); }, {got});
    expect_error([&] { wanda_prune(weight.view(), squares, wrong); }, {"[wanda_prune]", got});
  }
  expect_error([&] { wanda_mask(weight.view(), std::vector<float>{1}, counts, mask.view); }, {"3 columns, got 1"});
  expect_error([&] { wanda_prune(weight.view(), std::vector<float>{1, -2, 1}, counts); }, {"got -2 for feature 1"});
  expect_error([&] { wanda_mask(wide.view(), squares, counts, mask.view); }, {"weight must be one of", "float64"});
  expect_error([&] { wanda_prune(wide.view(), squares, counts); }, {"weight must be one of", "float64"});
  EXPECT_EQ(weight.bytes(), weight_before);
  EXPECT_EQ(mask.bytes, mask_before);
  weight.set(1, 1, kNaN);
  const auto with_nan = weight.bytes();
  expect_error([&] { wanda_prune(weight.view(), squares, counts); }, {"[wanda_prune]", "row 1, column 1"});
  EXPECT_EQ(weight.bytes(), with_nan);  // refused before anything was written
}

/// What is not finite is found while the mask is made, and the lowest row named, whatever finds it.
TEST(Masks, NameTheFirstNumberThatIsNone) {
  for (const DType dtype : kWeightTypes) {
    for (const Layout layout : kLayouts) {
      for (const std::int64_t cols : {4, 64, 132, 200}) {
        for (const std::int64_t col : {std::int64_t{0}, cols / 2, cols - 1}) {
          for (const double bad : {kNaN, kInf, -kInf}) {
            Matrix weight(dtype, 67, cols, layout);
            weight.fill([](std::int64_t r, std::int64_t c) { return static_cast<double>(r - c); });
            weight.set(41, col, bad), weight.set(66, 0, bad);
            const std::string place = "row 41, column " + std::to_string(col);
            for (const Isa isa : cpu_info().supported) {
              const ForcedIsa forced(isa);
              Mask mask(67, cols);
              const std::vector<std::int64_t> counts(67, cols / 2);
              expect_error([&] { wanda_mask(weight.view(), {}, counts, mask.view); },
                           {"[wanda_mask] weight must be finite", place});
              if (std::isnan(bad)) {
                expect_error([&] { nm_mask(weight.view(), 2, 4, mask.view); },
                             {"[nm_mask] scores must not hold NaN", place});
              } else {
                nm_mask(weight.view(), 2, 4, mask.view);  // infinity is an order like any other
              }
              ASSERT_TRUE(mask.guards_hold());
            }
          }
        }
      }
    }
  }
}

TEST(PrunedPerRow, TruncatesAsPythonDoes) {
  EXPECT_EQ(pruned_per_row(4096, 0.5), 2048);
  EXPECT_EQ(pruned_per_row(33, 0.1), 3);
  EXPECT_EQ(pruned_per_row(100, 0.29), 28);  // 100 · 0.29 = 28.999999999999996
  EXPECT_EQ(pruned_per_row(10, 0.0), 0);
  EXPECT_EQ(pruned_per_row(0, 0.7), 0);
  for (const double bad : {-0.1, 1.0, kNaN})
    expect_error([&] { pruned_per_row(8, bad); }, {"sparsity must be in [0, 1)"});
  expect_error([] { pruned_per_row(-1, 0.5); }, {"cols must not be negative, got -1"});
}

constexpr std::pair<int, int> kPatterns[] = {{1, 2}, {2, 4},  {1, 4},   {3, 4},   {4, 8},   {1, 8},  {7, 8},
                                             {2, 3}, {5, 16}, {15, 16}, {10, 32}, {20, 33}, {1, 50}, {49, 50}};

/// Row after row, whether a stable ascending sort of its block puts a score among the first m - n.
template <class Score>
std::vector<bool> pruned_blocks(std::int64_t rows, std::int64_t cols, int n, int m, Score&& score) {
  std::vector<bool> pruned;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t block = 0; block < cols; block += m) {
      std::vector<float> values;
      for (int k = 0; k < m; ++k) values.push_back(score(r, block + k));
      const std::vector<bool> of_block = pruned_reference(values, m - n);
      pruned.insert(pruned.end(), of_block.begin(), of_block.end());
    }
  }
  return pruned;
}

TEST(NmMask, MatchesAStableSortPerBlock) {
  std::mt19937 generator(4);
  for (const auto& [n, m] : kPatterns) {
    for (const DType dtype : kWeightTypes) {
      for (const Layout layout : kLayouts) {
        for (int kind = 0; kind < 4; ++kind) {
          const std::int64_t rows = 35, cols = m * (1 + 40 / m);  // more than a vector and not a multiple of one
          Matrix scores(dtype, rows, cols, layout);
          fill(scores, generator, kind);
          if (kind == 0) scores.set(3, 1, kInf), scores.set(4, 2 % cols, -kInf);  // legal
          const std::vector<bool> pruned = pruned_blocks(
              rows, cols, n, m, [&](std::int64_t r, std::int64_t c) { return static_cast<float>(scores.get(r, c)); });
          for (const Isa isa : cpu_info().supported) {
            const ForcedIsa forced(isa);
            Mask mask(rows, cols);
            nm_mask(scores.view(), n, m, mask.view);
            ASSERT_TRUE(mask.guards_hold());
            for (std::int64_t k = 0; k < rows * cols; ++k) {
              ASSERT_EQ(mask.keeps(k / cols, k % cols), !pruned[static_cast<std::size_t>(k)])
                  << n << ':' << m << ' ' << name_of(isa);
            }
          }
        }
      }
    }
  }
}

TEST(NmMask, TiesPruneTheLowestColumnAndZerosOfBothSignsTie) {
  Matrix scores(DType::f32, 1, 4);
  const double values[4] = {0.0, -0.0, 0.0, -0.0};
  scores.fill([&](std::int64_t, std::int64_t c) { return values[c]; });
  Mask mask(1, 4);
  nm_mask(scores.view(), 2, 4, mask.view);
  EXPECT_FALSE(mask.keeps(0, 0));
  EXPECT_FALSE(mask.keeps(0, 1));
  EXPECT_TRUE(mask.keeps(0, 2));
  EXPECT_TRUE(mask.keeps(0, 3));
}

TEST(NmMask, EachArgumentWrongAlone) {
  Matrix scores(DType::f32, 2, 8), ragged(DType::f32, 2, 9), wide(DType::f64, 2, 8);
  scores.fill([](std::int64_t, std::int64_t) { return 1.0; });
  Mask mask(2, 8), ragged_mask(2, 9);
  expect_error([&] { nm_mask(scores.view(), 1, 1, mask.view); }, {"[nm_mask] m must be at least 2, got 1"});
  expect_error([&] { nm_mask(scores.view(), 0, 4, mask.view); }, {"n must be in [1, 3], got 0"});
  expect_error([&] { nm_mask(scores.view(), 4, 4, mask.view); }, {"n must be in [1, 3], got 4"});
  expect_error([&] { nm_mask(ragged.view(), 2, 4, ragged_mask.view); }, {"multiple of m = 4 columns, got 9"});
  expect_error([&] { nm_mask(scores.view(), 2, 4, ragged_mask.view); }, {"mask must be [2, 8], got [2, 9]"});
  expect_error([&] { nm_mask(wide.view(), 2, 4, mask.view); }, {"scores must be one of", "float64"});
  scores.set(1, 6, kNaN);
  expect_error([&] { nm_mask(scores.view(), 2, 4, mask.view); }, {"must not hold NaN", "row 1, column 6"});
}

void expect_nm_pruned(DType dtype, Layout layout, std::int64_t rows, std::int64_t cols, int n, int m, int kind,
                      bool with_norm, std::mt19937& generator) {
  Matrix weight(dtype, rows, cols, layout);
  fill(weight, generator, kind);
  const std::vector<float> squares = with_norm ? some_squares(cols, generator) : std::vector<float>();
  std::vector<std::vector<float>> scores;
  for (std::int64_t r = 0; r < rows; ++r) scores.push_back(scores_of_row(weight, squares, r));
  const std::vector<bool> pruned = pruned_blocks(rows, cols, n, m, [&](std::int64_t r, std::int64_t c) {
    return scores[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
  });
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    Matrix in_place = weight;
    const std::int64_t zeros = nm_prune(in_place.view(), squares, n, m);
    expect_zeroed(weight, in_place, zeros,
                  [&](std::int64_t r, std::int64_t c) { return pruned[static_cast<std::size_t>(r * cols + c)]; });
  }
}

TEST(NmPrune, MatchesAStableSortPerBlock) {
  std::mt19937 generator(7);
  for (const auto& [n, m] : kPatterns) {
    for (const DType dtype : kWeightTypes) {
      for (const Layout layout : kLayouts) {
        for (const int kind : {0, 1, 3}) {
          expect_nm_pruned(dtype, layout, 33, m * (1 + 40 / m), n, m, kind, kind != 1, generator);
          if (HasFatalFailure()) return;
        }
      }
    }
    expect_nm_pruned(DType::bf16, Layout::row_major, 2, 2100 / m * m, n, m, 0, true, generator);  // several chunks
    expect_nm_pruned(DType::bf16, Layout::row_major, 1, 2 * m, n, m, 0, true, generator);
  }
  expect_nm_pruned(DType::f32, Layout::row_major, 2, 6000, 2999, 3000, 0, true, generator);  // a block beyond a chunk
  expect_nm_pruned(DType::f32, Layout::row_major, 0, 8, 2, 4, 0, true, generator);
  expect_nm_pruned(DType::f32, Layout::transposed, 3, 0, 2, 4, 0, false, generator);
}

TEST(WandaMask, ANormOfMinusZeroIsOneOfZero) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    constexpr std::int64_t kCols = 65;
    Matrix weight(dtype, 1, kCols), scores(DType::f32, 1, kCols);
    weight.fill([](std::int64_t, std::int64_t) { return 2.0; });
    std::vector<float> squares(kCols, 1.0f);
    squares[3] = squares[40] = -0.0f;
    squares[22] = 0.0f;
    for (const std::int64_t count : {0, 1, 2, 3}) {
      Mask mask(1, kCols);
      wanda_mask(weight.view(), squares, std::vector<std::int64_t>{count}, mask.view);
      for (std::int64_t c = 0; c < kCols; ++c) {
        const bool is_pruned = (c == 3 && count > 0) || (c == 22 && count > 1) || (c == 40 && count > 2);
        EXPECT_EQ(mask.keeps(0, c), !is_pruned) << "column " << c << ", " << count << " pruned";
      }
    }
    wanda_scores(weight.view(), squares, scores.view());
    EXPECT_FALSE(std::signbit(scores.get(0, 3)));
    Matrix pruned = weight;
    EXPECT_EQ(nm_prune({pruned.view().data, 1, 64, 64, 1, dtype}, Span<const float>(squares.data(), 64), 1, 32), 62);
  }
}

TEST(NmPrune, RowsWithoutColumnsAreNoWork) {
  constexpr std::int64_t kMany = std::int64_t{1} << 60;
  const MatrixView empty = {nullptr, kMany, 0, 0, 1, DType::bf16};
  EXPECT_EQ(nm_prune(empty, {}, 1, kMany), 0);
  nm_mask(empty, 1, kMany, {nullptr, kMany, 0, 0});
  apply_mask(empty, {nullptr, kMany, 0, 0});
  wanda_scores(empty, {}, {nullptr, kMany, 0, 0, 1, DType::f32});
}

TEST(NmPrune, EachArgumentWrongAlone) {
  Matrix weight(DType::f32, 2, 8), ragged(DType::f32, 2, 9), wide(DType::f64, 2, 8);
  weight.fill([](std::int64_t, std::int64_t) { return 1.0; });
  const std::vector<float> squares(8, 1.0f);
  const auto before = weight.bytes();
  expect_error([&] { nm_prune(weight.view(), squares, 1, 1); }, {"[nm_prune] m must be at least 2, got 1"});
  expect_error([&] { nm_prune(weight.view(), squares, 0, 4); }, {"n must be in [1, 3], got 0"});
  expect_error([&] { nm_prune(weight.view(), squares, 4, 4); }, {"n must be in [1, 3], got 4"});
  expect_error([&] { nm_prune(ragged.view(), {}, 2, 4); }, {"weight must have a multiple of m = 4 columns, got 9"});
  expect_error([&] { nm_prune(wide.view(), squares, 2, 4); }, {"weight must be one of", "float64"});
  expect_error([&] { nm_prune(weight.view(), std::vector<float>{1}, 2, 4); }, {"8 columns, got 1"});
  expect_error([&] { nm_prune(weight.view(), std::vector<float>(8, -1.0f), 2, 4); }, {"got -1 for feature 0"});
  MatrixView overlapping = weight.view();
  overlapping.row_stride = 0;
  expect_error([&] { nm_prune(overlapping, squares, 2, 4); }, {"must not overlap itself"});
  EXPECT_EQ(weight.bytes(), before);
  weight.set(1, 7, kNaN);
  const auto with_nan = weight.bytes();
  expect_error([&] { nm_prune(weight.view(), squares, 2, 4); }, {"must be finite", "row 1, column 7"});
  EXPECT_EQ(weight.bytes(), with_nan);
}

TEST(ApplyMask, KeepsTheBitsOfTheOthersEvenNaN) {
  for (const DType dtype : kWeightTypes) {
    for (const Layout layout : kLayouts) {
      std::mt19937 generator(5);
      const std::int64_t cols = 75;
      Matrix weight(dtype, 40, cols, layout);
      fill(weight, generator, 3);
      weight.set(2, 3, kNaN), weight.set(2, 4, kNaN), weight.set(2, 5, -kInf);
      Mask mask(40, cols);
      const auto value = [](std::int64_t r, std::int64_t c) { return static_cast<std::uint8_t>(r * c % 3 * 100); };
      for (int r = 0; r < 40; ++r) {
        for (int c = 0; c < cols; ++c) {
          mask.bytes[static_cast<std::size_t>(r * mask.view.row_stride + c)] = value(r, c);  // all but 0 means kept
        }
      }
      Matrix expected = weight;
      expected.fill([&](std::int64_t r, std::int64_t c) { return value(r, c) == 0 ? 0.0 : weight.get(r, c); });
      for (const Isa isa : cpu_info().supported) {
        const ForcedIsa forced(isa);
        Matrix masked = weight;
        apply_mask(masked.view(), mask.view);
        EXPECT_EQ(masked.bytes(), expected.bytes()) << name_of(isa) << ' ' << name_of(dtype);
      }
    }
  }
}

TEST(ApplyMask, EachArgumentWrongAlone) {
  Matrix weight(DType::f32, 2, 3), wide(DType::f64, 2, 3);
  Mask mask(2, 3), small(2, 2);
  expect_error([&] { apply_mask(weight.view(), small.view); }, {"[apply_mask] mask must be [2, 3], got [2, 2]"});
  expect_error([&] { apply_mask(wide.view(), mask.view); }, {"weight must be one of", "float64"});
  MatrixView overlapping = weight.view();
  overlapping.row_stride = 0;
  expect_error([&] { apply_mask(overlapping, mask.view); }, {"must not overlap itself"});
}

}  // namespace
}  // namespace stun_ext::test
