// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bitset>

#include "stun_ext/sparse.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

using test::expect_error;
using test::Layout;
using test::Matrix;

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

/// A share of the weights, of unequal number in the rows; -0.0, NaN payloads and infinity among them.
Matrix pruned(DType dtype, std::int64_t rows, std::int64_t cols, Layout layout, double density, unsigned seed = 1) {
  Matrix matrix(dtype, rows, cols, layout);
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  matrix.fill([&](std::int64_t r, std::int64_t) {
    return uniform(generator) < density * (0.5 + static_cast<double>(r % 3) / 2) ? normal(generator) : 0.0;
  });
  if (rows > 0 && cols > 3 && dtype != DType::f32) {
    matrix.set_bits(0, 0, 0x8000);  // -0.0
    matrix.set_bits(0, 1, 0xffab);  // NaN with a payload
    matrix.set_bits(rows - 1, cols - 1, dtype == DType::f16 ? 0x7c00 : 0x7f80);
    matrix.set_bits(rows - 1, 0, 0x0001);  // subnormal
  }
  if (rows > 0 && cols > 3 && dtype == DType::f32) matrix.set(0, 0, -0.0);
  return matrix;
}

std::uint32_t bits_at(const Matrix& matrix, std::int64_t row, std::int64_t col) {
  const ConstMatrixView view = matrix.view();
  const std::size_t size = size_of(view.dtype);
  std::uint32_t bits = 0;
  std::memcpy(&bits,
              static_cast<const char*>(view.data) +
                  static_cast<std::ptrdiff_t>(size) * (row * view.row_stride + col * view.col_stride),
              size);
  return bits;
}

/// The format by its definition, bit by bit.
void expect_format(const PackedMatrix& packed, const Matrix& dense) {
  const ConstMatrixView view = dense.view();
  const std::size_t size = size_of(view.dtype);
  std::size_t mask = 0, value = 0;
  for (std::int64_t g = 0; g < view.rows; g += 4) {
    if (view.cols > 0) {
      EXPECT_EQ(packed.offsets()[static_cast<std::size_t>(g / 4)], static_cast<std::int64_t>(value));
    }
    for (std::int64_t b = 0; b < view.cols; b += 32) {
      for (std::int64_t r = g; r < g + 4; ++r) {
        const std::uint32_t bits = packed.masks()[mask++];
        for (std::int64_t c = b; c < b + 32; ++c) {
          const std::uint32_t expected = r < view.rows && c < view.cols ? bits_at(dense, r, c) : 0;
          ASSERT_EQ((bits >> (c - b)) & 1, expected != 0) << r << ' ' << c;
          if (expected == 0) continue;
          std::uint32_t stored = 0;
          std::memcpy(&stored, packed.values().data() + value++ * size, size);
          ASSERT_EQ(stored, expected) << r << ' ' << c;
        }
      }
    }
  }
  EXPECT_EQ(mask, packed.masks().size());
  EXPECT_EQ(packed.nnz(), static_cast<std::int64_t>(value));
  EXPECT_EQ(packed.values().size(), (value * size + 63) / 64 * 64 + 64);
  for (std::size_t i = value * size; i < packed.values().size(); ++i) EXPECT_EQ(packed.values()[i], std::byte{0});
}

TEST(Packed, RoundTripBitForBit) {
  for (const DType dtype : kDtypes) {
    for (const Layout layout : test::kLayouts) {
      for (const std::int64_t rows : {0, 1, 3, 4, 5, 37}) {
        for (const std::int64_t cols : {0, 1, 31, 32, 33, 64, 100}) {
          for (const double density : {0.0, 0.4, 2.0}) {
            SCOPED_TRACE(::testing::Message() << name_of(dtype) << ' ' << rows << " x " << cols << ", layout "
                                              << static_cast<int>(layout) << ", density " << density);
            const Matrix dense = pruned(dtype, rows, cols, layout, density);
            const PackedMatrix packed = pack(dense.view());
            expect_format(packed, dense);
            const PackedSize size = packed_size(dense.view());
            EXPECT_EQ(size.nnz, packed.nnz());
            EXPECT_EQ(size.value_bytes, static_cast<std::int64_t>(packed.values().size()));
            EXPECT_EQ(size.masks, static_cast<std::int64_t>(packed.masks().size()));
            Matrix back(dtype, rows, cols, layout);
            unpack(packed, back.view());
            EXPECT_EQ(back.bytes(), dense.bytes());  // and nothing around the elements is touched
          }
        }
      }
    }
  }
}

TEST(Packed, BuffersOfTheCallersAreUsedInPlace) {
  const Matrix dense = pruned(DType::bf16, 10, 70, Layout::transposed, 0.5);
  const PackedSize size = packed_size(dense.view());
  std::vector<std::byte> values(static_cast<std::size_t>(size.value_bytes), std::byte{0x77});
  std::vector<std::uint32_t> masks(static_cast<std::size_t>(size.masks), 0x77777777u);
  pack_into(dense.view(), values, masks);
  const PackedMatrix packed = PackedMatrix::from_buffers(10, 70, DType::bf16, values, masks);
  EXPECT_EQ(packed.values().data(), values.data());
  EXPECT_EQ(packed.masks().data(), masks.data());
  expect_format(packed, dense);
  const PackedMatrix own = pack(dense.view());
  EXPECT_TRUE(std::equal(values.begin(), values.end(), own.values().begin(), own.values().end()));
  EXPECT_TRUE(std::equal(masks.begin(), masks.end(), own.masks().begin(), own.masks().end()));
}

TEST(Packed, SizeIsDensityAndASixteenthOfDense) {
  for (const double density : {0.3, 0.5, 0.85}) {
    Matrix dense(DType::bf16, 768, 2048);
    std::mt19937 generator(3);
    std::uniform_real_distribution<double> uniform;
    dense.fill([&](std::int64_t, std::int64_t) { return uniform(generator) < density ? 1.0 : 0.0; });
    const PackedSize size = packed_size(dense.view());
    const double share = static_cast<double>(size.nnz) / (768.0 * 2048.0);
    EXPECT_NEAR(static_cast<double>(size.bytes()) / (2 * 768.0 * 2048.0), share + 1.0 / 16.0, 1e-4);
  }
}

TEST(Packed, ThreadsMakeNoDifference) {
  const Matrix dense = pruned(DType::f16, 301, 1000, Layout::row_major, 0.5);
  const PackedMatrix one = [&] {
    const test::Threads threads(1);
    return pack(dense.view());
  }();
  const test::Threads threads(5);
  const PackedMatrix five = pack(dense.view());
  EXPECT_TRUE(std::equal(one.values().begin(), one.values().end(), five.values().begin(), five.values().end()));
  EXPECT_TRUE(std::equal(one.masks().begin(), one.masks().end(), five.masks().begin(), five.masks().end()));
}

TEST(Packed, HostileBuffersAreRefused) {
  const Matrix dense = pruned(DType::bf16, 6, 40, Layout::row_major, 0.5);
  const PackedMatrix good = pack(dense.view());
  std::vector<std::byte> values(good.values().begin(), good.values().end());
  std::vector<std::uint32_t> masks(good.masks().begin(), good.masks().end());
  const auto make = [&](std::int64_t rows, std::int64_t cols, DType dtype) {
    return [&, rows, cols, dtype] { PackedMatrix::from_buffers(rows, cols, dtype, values, masks); };
  };
  EXPECT_NO_THROW(make(6, 40, DType::bf16)());
  expect_error(make(-1, 40, DType::bf16), {"[from_buffers] rows and cols must not be negative, got [-1, 40]"});
  expect_error(make(std::int64_t{1} << 62, 40, DType::bf16), {"[from_buffers] rows and cols must be of a matrix"});
  expect_error(make(std::int64_t{1} << 40, std::int64_t{1} << 40, DType::bf16), {"must be of a matrix that fits"});
  expect_error(make(6, 40, DType::f64), {"[from_buffers] dtype must be one of", "float64"});
  expect_error(make(9, 40, DType::bf16), {"[from_buffers] masks must hold 24 values, got 16"});
  expect_error(make(6, 40, DType::f32), {"[from_buffers] values must hold", "float32"});
  expect_error(make(5, 40, DType::bf16), {"[from_buffers] masks must be 0 outside of the matrix"});
  expect_error(make(6, 39, DType::bf16), {"[from_buffers] masks must be 0 outside of the matrix"});
  // More values announced than there are.
  for (int i = 0; i < 4; ++i) masks[static_cast<std::size_t>(i)] = ~0u;
  expect_error(make(6, 40, DType::bf16), {"[from_buffers] values must hold"});
  std::copy(good.masks().begin(), good.masks().end(), masks.begin());
  // One more, which the zeros after the last one would hide.
  ASSERT_NE(masks[1], ~0u);
  masks[1] |= masks[1] + 1;
  expect_error(make(6, 40, DType::bf16), {"[from_buffers] masks must announce as many values as there are, got"});
  std::copy(good.masks().begin(), good.masks().end(), masks.begin());
  values.back() = std::byte{1};
  expect_error(make(6, 40, DType::bf16), {"[from_buffers] values must end with zero bytes"});
  values.back() = std::byte{0};
  values.push_back(std::byte{0});
  expect_error(make(6, 40, DType::bf16), {"[from_buffers] values must hold"});
  values.pop_back();
  const Span<const std::byte> odd(values.data() + 1, values.size());
  expect_error([&] { PackedMatrix::from_buffers(6, 40, DType::bf16, odd, masks); }, {"values must be aligned to 2"});
  const Span<const std::byte> null(nullptr, values.size());
  expect_error([&] { PackedMatrix::from_buffers(6, 40, DType::bf16, null, masks); }, {"values must not be null"});
}

TEST(Packed, Errors) {
  const Matrix dense = pruned(DType::bf16, 6, 40, Layout::row_major, 0.5);
  const PackedMatrix packed = pack(dense.view());
  Matrix other(DType::bf16, 6, 41), wide(DType::f32, 6, 40), number(DType::i64, 6, 40);
  expect_error([&] { unpack(packed, other.view()); }, {"[unpack] weight must be [6, 40] of bfloat16", "[6, 41]"});
  expect_error([&] { unpack(packed, wide.view()); }, {"[unpack] weight must be [6, 40] of bfloat16", "of float32"});
  expect_error([&] { pack(number.view()); }, {"[pack] weight must be one of float32, float16, bfloat16, got int64"});
  expect_error([&] { packed_size(number.view()); }, {"[packed_size] weight must be one of"});
  std::vector<std::byte> values(packed.values().size());
  std::vector<std::uint32_t> masks(packed.masks().size() + 1);
  expect_error([&] { pack_into(dense.view(), values, masks); }, {"[pack_into] masks must hold 16 values, got 17"});
  expect_error([&] { packed_value_bytes(-1, DType::bf16); }, {"[packed_value_bytes] nnz must be in"});
  expect_error([&] { packed_value_bytes(1, DType::i64); }, {"[packed_value_bytes] dtype must be one of"});
  EXPECT_EQ(PackedMatrix().nnz(), 0);
}

}  // namespace
}  // namespace stun_ext
