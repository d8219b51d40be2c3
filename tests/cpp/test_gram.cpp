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
void expect_bound(const GramKernels& kernels, const Matrix& rows, std::int64_t count_a, std::int64_t count_b) {
  const ConstMatrixView view = rows.view();
  const GramFrame frame = GramFrame::of(view, default_executor());
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

/// All that this processor can run.
std::vector<const GramKernels*> all_kernels() {
  std::vector<const GramKernels*> all;
  for (const Isa isa : cpu_info().supported) {
    const ForcedIsa forced(isa);
    all.push_back(&STUN_EXT_KERNELS(gram));
    const GramKernels& for_many_columns = gram_kernels(1 << 20);
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

}  // namespace
}  // namespace stun_ext::detail
