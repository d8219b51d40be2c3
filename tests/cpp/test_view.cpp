// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/distance.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/saliency.hpp"
#include "support.hpp"

namespace stun_ext::test {
namespace {

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::f16), 2u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_STREQ(name_of(DType::f32), "float32");
  EXPECT_STREQ(name_of(DType::f16), "float16");
  EXPECT_STREQ(name_of(DType::bf16), "bfloat16");
  EXPECT_STREQ(name_of(DType::f64), "float64");
  EXPECT_STREQ(name_of(DType::i64), "int64");
}

// Magnitude scores are the values themselves, so this reads every bit pattern through the library's conversions.
void expect_every_pattern_converts(DType dtype, double (*decode)(std::uint16_t), std::uint16_t infinity) {
  Matrix weight(dtype, 2, infinity);
  for (std::uint16_t bits = 0; bits < infinity; ++bits) {
    weight.set_bits(0, bits, bits);
    weight.set_bits(1, bits, static_cast<std::uint16_t>(bits | 0x8000));
  }
  Matrix scores(DType::f32, 2, infinity);
  wanda_scores(weight.view(), {}, scores.view());
  for (std::uint16_t bits = 0; bits < infinity; ++bits) {
    ASSERT_EQ(scores.get(0, bits), decode(bits)) << bits;
    ASSERT_EQ(scores.get(1, bits), decode(bits)) << bits;
  }
}

TEST(Conversion, EveryFiniteHalfIsExact) { expect_every_pattern_converts(DType::f16, decode_half, 0x7c00); }
TEST(Conversion, EveryFiniteBFloat16IsExact) { expect_every_pattern_converts(DType::bf16, decode_bfloat16, 0x7f80); }

TEST(Conversion, SignsReachTheDistances) {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64}) {
    Matrix rows(dtype, 2, 1);
    rows.set(0, 0, -1.5);
    rows.set(1, 0, 2.0);
    double distance = 0.0;
    condensed_distances(rows.view(), {&distance, 1});
    EXPECT_EQ(distance, 3.5) << name_of(dtype);
  }
}

TEST(Finite, EveryNonFinitePatternIsRefusedNamingItsRow) {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64}) {
    for (const Layout layout : kLayouts) {
      for (const double bad : {kNaN, kInf, -kInf}) {
        Matrix rows(dtype, 70, 9, layout);
        rows.fill([](std::int64_t r, std::int64_t c) { return static_cast<double>(r + c); });
        rows.set(66, 1, bad);
        rows.set(41, 7, bad);  // the lowest row is named, whatever is found first
        std::vector<double> out(70 * 69 / 2);
        for (const int threads : {1, 7}) {
          const Threads scope(threads);
          expect_error([&] { condensed_distances(rows.view(), out); },
                       {"[condensed_distances] rows must be finite", "in row 41, column 7"});
        }
      }
    }
  }
}

TEST(Views, ADimensionOfOneElementMayHaveAnyStride) {
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  float row[3] = {3.0f, 1.0f, 2.0f};
  std::uint8_t mask[3];
  wanda_mask({row, 1, 3, kLowest, 1, DType::f32}, {}, std::vector<std::int64_t>{1}, {mask, 1, 3, kLowest});
  EXPECT_EQ(std::vector<std::uint8_t>(mask, mask + 3), (std::vector<std::uint8_t>{1, 0, 1}));
  double distances[9];
  pairwise_distances({row, 3, 1, 1, kLowest, DType::f32}, false, {distances, 3, 3, 3, 1, DType::f64});
  EXPECT_EQ(distances[1], 2.0);
}

TEST(Views, StridesBeyondAnyMemoryAreRefused) {
  float rows[2] = {1.0f, 2.0f};
  std::vector<double> out(1);
  expect_error([&] { condensed_distances({rows, 2, 1, std::int64_t{1} << 62, 1, DType::f32}, out); },
               {"[condensed_distances] rows must lie in memory, got strides [4611686018427387904, 1]"});
  expect_error([&] { condensed_distances({rows, std::int64_t{1} << 40, 1, 0, 1, DType::f32}, out); },
               {"rows must be fewer than 2^32", "got 1099511627776"});
}

TEST(Finite, EveryPlaceInARowIsLookedAtWithEveryInstructionSet) {
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
      for (const std::int64_t cols : {1, 15, 16, 17, 31, 32, 33, 64, 70}) {
        Matrix scores(dtype, 2, cols);
        scores.fill([](std::int64_t, std::int64_t c) { return c % 2 == 0 ? -65504.0 : 65504.0; });  // float16's highest
        std::vector<std::uint8_t> mask(static_cast<std::size_t>(2 * cols));
        const std::vector<std::int64_t> counts = {0, 0};
        const auto call = [&] { wanda_mask(scores.view(), {}, counts, {mask.data(), 2, cols, cols}); };
        call();
        for (std::int64_t c = 0; c < cols; ++c) {
          for (const double bad : {kNaN, kInf, -kInf}) {
            const double good = scores.get(1, c);
            scores.set(1, c, bad);
            expect_error(call, {"weight must be finite", "in row 1, column " + std::to_string(c)});
            scores.set(1, c, good);
          }
        }
      }
    }
  }
}

TEST(Writable, OverlappingStridesAreRefused) {
  float value[8] = {};
  const std::vector<std::int64_t> counts = {0, 0};
  for (const MatrixView view : {MatrixView{value, 2, 4, 0, 1, DType::f32}, MatrixView{value, 2, 4, 2, 1, DType::f32},
                                MatrixView{value, 2, 4, 4, 0, DType::f32}, MatrixView{value, 2, 4, 1, 1, DType::f32}}) {
    expect_error([&] { wanda_prune(view, {}, counts); }, {"[wanda_prune] weight must not overlap itself"});
  }
  // Strides of dimensions of size one mean nothing.
  EXPECT_EQ(wanda_prune({value, 1, 4, 0, 1, DType::f32}, {}, std::vector<std::int64_t>{0}), 4);
  EXPECT_EQ(wanda_prune({value, 2, 1, 1, 0, DType::f32}, {}, counts), 2);
}

TEST(View, NullAndNegativeSizesAreRefused) {
  const std::vector<std::int64_t> counts = {0, 0};
  expect_error([&] { wanda_prune({nullptr, 2, 4, 4, 1, DType::f32}, {}, counts); }, {"[wanda_prune]", "null"});
  float value = 0;
  expect_error([&] { wanda_prune({&value, -2, 4, 4, 1, DType::f32}, {}, counts); }, {"negative size", "[-2, 4]"});
}

}  // namespace
}  // namespace stun_ext::test
