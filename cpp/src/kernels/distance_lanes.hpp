// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "distance.hpp"
#include "unroll.hpp"

namespace stun_ext::detail {

/// The bits of float16 and bfloat16 elements, so that they can be told apart.
struct Float16Bits {
  std::uint16_t bits;
};
struct BFloat16Bits {
  std::uint16_t bits;
};

/// The kernels for an instruction set that says how to compute with vectors of L::kWidth doubles. L is a class of the
/// including file's own (in an unnamed namespace), so nothing here is shared between the files.
template <class L>
struct DistanceLanes {
  using Value = typename L::Value;
  static constexpr int kWidth = L::kWidth;        ///< also the rows packed together
  static constexpr int kParts = kLanes / kWidth;  ///< vectors that the chains of a pair of rows take
  static constexpr int kGroupsB = 3;              ///< kWidth · 3 sums, three vectors of b and one of a in registers
  static constexpr std::int64_t kAhead = 256;     ///< doubles of side a: the second cache is as far away
  static_assert(kParts * kWidth == kLanes);

  struct Product {
    static Value add(Value x, Value y, Value sum) noexcept { return L::multiply_add(x, y, sum); }
  };
  struct Difference {
    static Value add(Value x, Value y, Value sum) noexcept {
      const Value d = x - y;
      return L::multiply_add(d, d, sum);
    }
  };

  template <class Term, int B>
  static void panels_of(const double* a, const double* b, std::int64_t depth, bool is_first, double* out,
                        std::int64_t stride) noexcept {
    Value sum[kWidth][B];
    STUN_EXT_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      STUN_EXT_UNROLL
      for (int v = 0; v < B; ++v) sum[i][v] = L::fill(0.0);
    }
    for (std::int64_t k = 0; k < depth; ++k) {
      // Groups of b stay in the first cache, those of a go by.
      __builtin_prefetch(a + k * kWidth + kAhead);
      Value y[B];
      STUN_EXT_UNROLL
      for (int v = 0; v < B; ++v) y[v] = L::load(b + (v * depth + k) * kWidth);
      STUN_EXT_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        const Value x = L::fill(a[k * kWidth + i]);
        STUN_EXT_UNROLL
        for (int v = 0; v < B; ++v) sum[i][v] = Term::add(x, y[v], sum[i][v]);
      }
    }
    STUN_EXT_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      STUN_EXT_UNROLL
      for (int v = 0; v < B; ++v) {
        double* to = out + i * stride + v * kWidth;
        L::store(to, is_first ? sum[i][v] : L::load(to) + sum[i][v]);
      }
    }
  }

  template <class Term>
  static void panels(const double* a, const double* b, std::int64_t count, std::int64_t depth, bool is_first,
                     double* out, std::int64_t stride) noexcept {
    if (count == 3) return panels_of<Term, 3>(a, b, depth, is_first, out, stride);
    if (count == 2) return panels_of<Term, 2>(a, b, depth, is_first, out, stride);
    panels_of<Term, 1>(a, b, depth, is_first, out, stride);
  }

  /// A vector of columns of which only `cols` are there, with zeros behind the last.
  template <class Element>
  static Value load_rest(const Element* from, std::int64_t cols) noexcept {
    Element values[kWidth] = {};
    for (std::int64_t c = 0; c < cols && c < kWidth; ++c) values[c] = from[c];
    return L::load(values);
  }

  /// Adds a vector's chains to those of a block, one to the other.
  static void add_chains(Value chains, double& block) noexcept {
    double values[kWidth];
    L::store(values, chains);
    STUN_EXT_UNROLL
    for (int l = 0; l < kWidth; ++l) block += values[l];
  }

  template <class Element>
  static void pair(const void* x_data, const void* y_data, std::int64_t cols, double* sums) noexcept {
    const auto* x = static_cast<const Element*>(x_data);
    const auto* y = static_cast<const Element*>(y_data);
    Value chains[4][kParts];
    STUN_EXT_UNROLL
    for (int k = 0; k < 4; ++k) {
      STUN_EXT_UNROLL
      for (int p = 0; p < kParts; ++p) chains[k][p] = L::fill(0.0);
    }
    const auto add = [&](int p, Value of_x, Value of_y) noexcept {
      chains[0][p] = Product::add(of_x, of_x, chains[0][p]);
      chains[1][p] = Product::add(of_y, of_y, chains[1][p]);
      chains[2][p] = Product::add(of_x, of_y, chains[2][p]);
      chains[3][p] = Difference::add(of_x, of_y, chains[3][p]);
    };
    std::int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      STUN_EXT_UNROLL
      for (int p = 0; p < kParts; ++p) add(p, L::load(x + c + p * kWidth), L::load(y + c + p * kWidth));
    }
    STUN_EXT_UNROLL
    for (int p = 0; p < kParts; ++p, c += kWidth) {
      if (c < cols) add(p, load_rest(x + c, cols - c), load_rest(y + c, cols - c));
    }
    STUN_EXT_UNROLL
    for (int k = 0; k < 4; ++k) {
      double block = 0.0;
      STUN_EXT_UNROLL
      for (int p = 0; p < kParts; ++p) add_chains(chains[k][p], block);
      sums[k] += block;
    }
  }

  /// Calls step(load) with how to load each vector of a part of the lanes: of all rows the same columns.
  template <class Element, class Step>
  static void for_each_vector(int part, std::int64_t cols, const Step& step) noexcept {
    std::int64_t c = part * kWidth;
    for (; c + kWidth <= cols; c += kLanes) step([=](const Element* row) noexcept { return L::load(row + c); });
    if (c < cols) step([=](const Element* row) noexcept { return load_rest(row + c, cols - c); });
  }

  // The parts one after the other: together they would leave registers for few rows.
  template <class Element, int B>
  static void products_with(const Element* x, const Element* const* y, std::int64_t cols, double* sums) noexcept {
    double block[1 + 2 * B] = {};
    for (int part = 0; part < kParts; ++part) {
      Value xx = L::fill(0.0), xy[B], yy[B];
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) xy[j] = yy[j] = L::fill(0.0);
      for_each_vector<Element>(part, cols, [&](const auto& load) noexcept {
        const Value of_x = load(x);
        xx = Product::add(of_x, of_x, xx);
        STUN_EXT_UNROLL
        for (int j = 0; j < B; ++j) {
          const Value of_y = load(y[j]);
          xy[j] = Product::add(of_x, of_y, xy[j]);
          yy[j] = Product::add(of_y, of_y, yy[j]);
        }
      });
      add_chains(xx, block[0]);
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) {
        add_chains(xy[j], block[1 + 2 * j]);
        add_chains(yy[j], block[2 + 2 * j]);
      }
    }
    for (int k = 0; k < 1 + 2 * B; ++k) sums[k] += block[k];
  }

  template <class Term, class Element, int B>
  static void sums_with(const Element* x, const Element* const* y, std::int64_t cols, double* sums) noexcept {
    double block[B] = {};
    for (int part = 0; part < kParts; ++part) {
      Value sum[B];
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) sum[j] = L::fill(0.0);
      for_each_vector<Element>(part, cols, [&](const auto& load) noexcept {
        const Value of_x = load(x);
        STUN_EXT_UNROLL
        for (int j = 0; j < B; ++j) sum[j] = Term::add(of_x, load(y[j]), sum[j]);
      });
      STUN_EXT_UNROLL
      for (int j = 0; j < B; ++j) add_chains(sum[j], block[j]);
    }
    for (int j = 0; j < B; ++j) sums[j] += block[j];
  }

  // Rows one by one where there are not kManyRows; x·x goes to sums[0] once.
  template <class Element>
  static void products(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
                       double* sums) noexcept {
    const auto* x = static_cast<const Element*>(x_data);
    const Element* y[kManyRows];
    for (std::int64_t j = 0; j < count; ++j) y[j] = static_cast<const Element*>(y_data[j]);
    if (count == kManyRows) return products_with<Element, kManyRows>(x, y, cols, sums);
    const double before = sums[0];
    for (std::int64_t j = 0; j < count; ++j) {
      double of_pair[3] = {before, sums[1 + 2 * j], sums[2 + 2 * j]};
      products_with<Element, 1>(x, y + j, cols, of_pair);
      sums[0] = of_pair[0];
      sums[1 + 2 * j] = of_pair[1];
      sums[2 + 2 * j] = of_pair[2];
    }
  }

  template <class Term, class Element>
  static void sums_of(const void* x_data, const void* const* y_data, std::int64_t count, std::int64_t cols,
                      double* sums) noexcept {
    const auto* x = static_cast<const Element*>(x_data);
    const Element* y[kManyRows];
    for (std::int64_t j = 0; j < count; ++j) y[j] = static_cast<const Element*>(y_data[j]);
    if (count == kManyRows) return sums_with<Term, Element, kManyRows>(x, y, cols, sums);
    for (std::int64_t j = 0; j < count; ++j) sums_with<Term, Element, 1>(x, y + j, cols, sums + j);
  }

  template <class Element>
  static void pack(const void* const* rows, std::int64_t count, std::int64_t cols, double* to,
                   std::int64_t lane_stride) noexcept {
    const std::int64_t padded = (cols + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t c = 0; c < padded; c += kWidth) {
      Value v[kWidth];
      if (count == kWidth && c + kWidth <= cols) {
        STUN_EXT_UNROLL
        for (int r = 0; r < kWidth; ++r) v[r] = L::load(static_cast<const Element*>(rows[r]) + c);
      } else {
        STUN_EXT_UNROLL
        for (int r = 0; r < kWidth; ++r) {
          v[r] = r < count ? load_rest(static_cast<const Element*>(rows[r]) + c, cols - c) : L::fill(0.0);
        }
      }
      L::transpose(v);
      double* first = to + c % kLanes * lane_stride + c / kLanes * kWidth;
      STUN_EXT_UNROLL
      for (int l = 0; l < kWidth; ++l) L::store(first + l * lane_stride, v[l]);
    }
  }

  template <class Element>
  static constexpr RowKernels row_kernels() noexcept {
    return {pair<Element>, products<Element>, sums_of<Product, Element>, sums_of<Difference, Element>, pack<Element>};
  }

  static constexpr DistanceKernels kernels() noexcept {
    return {kWidth,
            kGroupsB,
            panels<Product>,
            panels<Product>,
            panels<Difference>,
            row_kernels<float>(),
            row_kernels<BFloat16Bits>(),
            row_kernels<Float16Bits>(),
            row_kernels<double>()};
  }
};

}  // namespace stun_ext::detail
