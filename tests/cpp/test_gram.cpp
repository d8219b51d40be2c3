// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "dispatch.hpp"
#include "distance/gram.hpp"
#include "support.hpp"

namespace stun_ext::detail {
namespace {

using test::ForcedIsa;
using test::Matrix;

// Every product within the stated error, and every one written.
void expect_bound(const GramKernels& kernels, const Matrix& rows, std::int64_t count_a, std::int64_t count_b,
                  const GramFrame& frame) {
  const ConstMatrixView view = rows.view();
  std::vector<std::uint32_t> a(static_cast<std::size_t>(count_a)), b(static_cast<std::size_t>(count_b));
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::uint32_t>(i);
  for (std::size_t j = 0; j < b.size(); ++j)
    b[j] = static_cast<std::uint32_t>(view.rows - 1 - static_cast<std::int64_t>(j));
  GramPanel of_a(GramPanel::Side::a, count_a, view.cols, kernels),
      of_b(GramPanel::Side::b, count_b, view.cols, kernels);
  of_a.pack(view, a.data(), count_a, frame);
  of_b.pack(view, b.data(), count_b, frame);
  const std::int64_t stride = count_b + kGramPadding;
  std::vector<float> out(static_cast<std::size_t>((count_a + kGramPadding) * stride),
                         std::numeric_limits<float>::quiet_NaN());
  gram(of_a, of_b, out.data(), stride);
  for (std::int64_t i = 0; i < count_a; ++i) {
    for (std::int64_t j = 0; j < count_b; ++j) {
      long double dot = 0, squared = 0;
      for (std::int64_t c = 0; c < view.cols; ++c) {
        const long double center = frame.center[static_cast<std::size_t>(c)];
        const long double x = (rows.get(a[static_cast<std::size_t>(i)], c) - center) * frame.scale;
        const long double y = (rows.get(b[static_cast<std::size_t>(j)], c) - center) * frame.scale;
        dot += x * y;
        squared += x * x;
      }
      const double bound = of_a.error(i) * of_b.norm(j) + of_a.norm(i) * of_b.error(j) +
                           of_a.gamma() * of_a.norm(i) * of_b.norm(j) + 1e-30;
      const float value = out[static_cast<std::size_t>(i * stride + j)];
      ASSERT_LE(std::abs(static_cast<double>(value - dot)), bound) << i << ',' << j << " of " << view.cols;
      ASSERT_NEAR(of_a.squared_norm(i), static_cast<double>(squared), 1e-12 * static_cast<double>(squared) + 1e-300);
      ASSERT_LE(of_a.norm(i), 1.001);
    }
  }
}

void expect_bound(const GramKernels& kernels, const Matrix& rows, std::int64_t count_a, std::int64_t count_b) {
  expect_bound(kernels, rows, count_a, count_b, GramFrame::of(rows.view(), default_executor()));
}

/// All that this processor can run.
std::vector<const GramKernels*> all_kernels() {
  std::vector<const GramKernels*> all;
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    all.push_back(&STUN_EXT_KERNELS(gram));
    const GramKernels& for_many_columns = gram_kernels(1 << 16);
    if (&for_many_columns != all.back()) all.push_back(&for_many_columns);
  }
  return all;
}

TEST(Gram, StaysWithinItsErrorWithAllKernels) {
  std::mt19937 generator(1);
  for (const GramKernels* kernels : all_kernels()) {
    for (const std::int64_t d : {1, 2, 7, 31, 32, 255, 256, 257, 1000}) {
      Matrix normal(DType::f32, 40, d), mean(DType::bf16, 40, d), wild(DType::f64, 40, d);
      normal.fill_normal(generator);
      std::normal_distribution<double> draw;
      mean.fill([&](std::int64_t, std::int64_t) { return 300.0 + draw(generator); });
      wild.fill([&](std::int64_t r, std::int64_t c) {
        return c == 3 ? 1e30 : std::ldexp(draw(generator), static_cast<int>(7 * r % 90));
      });
      for (const std::int64_t count : {1, 5, 6, 7, 13, 33}) {
        expect_bound(*kernels, normal, count, 40 - count);
        expect_bound(*kernels, mean, count, 40 - count);
        expect_bound(*kernels, wild, count, 40 - count);
      }
    }
    Matrix zeros(DType::f32, 9, 20);
    zeros.fill([](std::int64_t, std::int64_t) { return 0.0; });
    expect_bound(*kernels, zeros, 4, 5);
  }
}

TEST(Gram, StaysWithinItsErrorOnRowsOfAnyKind) {
  std::mt19937 generator(2);
  std::normal_distribution<double> draw;
  for (const GramKernels* kernels : all_kernels()) {
    for (const std::int64_t d : {64, 300, 4096}) {
      const std::int64_t n = 24;
      Matrix duplicates(DType::f32, n, d), huge(DType::f64, n, d), small(DType::f32, n, d), tiny(DType::f64, n, d),
          mixed(DType::f64, n, d), positive(DType::f32, n, d);
      Matrix center(DType::f32, 4, d);
      center.fill_normal(generator);
      duplicates.fill([&](std::int64_t r, std::int64_t c) { return center.get(r % 4, c) + 1e-4 * draw(generator); });
      huge.fill([&](std::int64_t, std::int64_t) { return 1e140 * draw(generator); });
      small.fill([&](std::int64_t, std::int64_t) { return 1e-41 * draw(generator); });  // float32's subnormals
      tiny.fill([&](std::int64_t, std::int64_t) { return 1e-318 * draw(generator); });  // float64's
      // Most values are subnormal once scaled, whole or as what is left of one rounded to bfloat16.
      mixed.fill([&](std::int64_t r, std::int64_t c) {
        return c == 5 ? static_cast<double>(r - 11)
                      : std::ldexp(draw(generator), -110 - static_cast<int>((r + c) % 40));
      });
      positive.fill([&](std::int64_t, std::int64_t) { return std::abs(draw(generator)); });
      GramFrame at_origin = GramFrame::of(positive.view(), default_executor());
      at_origin.center.assign(static_cast<std::size_t>(d), 0.0);
      at_origin.scale /= 16.0;
      for (const Matrix* rows : {&duplicates, &huge, &small, &tiny, &mixed}) {
        SCOPED_TRACE(rows->get(0, 0));
        expect_bound(*kernels, *rows, 17, 7);
      }
      expect_bound(*kernels, positive, 17, 7, at_origin);
    }
  }
}

// The worst that rounding can do: a large first product, and then ever the same that is just too small to change it.
TEST(Gram, StaysWithinItsErrorWhereRoundingAddsUp) {
  const double first = 0.71484375, rest = 0x1.fep-16;  // bfloat16 both; 32 rest² is below half a unit of first²
  for (const GramKernels* kernels : all_kernels()) {
    for (const std::int64_t d : {4096, 7168, 65536, 131072}) {
      Matrix rows(DType::f32, 2, d);
      rows.fill([&](std::int64_t, std::int64_t c) { return c == 0 ? first : rest; });
      GramFrame frame;
      frame.center.assign(static_cast<std::size_t>(d), 0.0);
      expect_bound(*kernels, rows, 2, 2, frame);
    }
  }
}

}  // namespace
}  // namespace stun_ext::detail
