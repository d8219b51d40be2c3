// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "mask.hpp"
#include "prefetch.hpp"

namespace stun_ext::detail {
namespace {

/// The kernels of an instruction set with such vectors (lanes_<isa>.hpp).
template <class Narrow, class Wide>
struct MaskLanes {
  static constexpr std::int64_t kFloats = Wide::kWidth;
  static constexpr std::int64_t kHalves = Narrow::kWidth;
  static_assert(kHalves == 2 * kFloats && kUpperMultiple % (2 * kHalves) == 0);

  // Element types: their bits as they are stored, as float32, and the scalar kernels for what is less than a vector.
  struct F32 {
    using Stored = float;
    using Lanes = Wide;
    static constexpr int highest = 0x7f7fffff;
    static constexpr auto scores_rest = &MaskKernels::scores_f32;
    static constexpr auto uppers_rest = &MaskKernels::uppers_f32;
    static typename Wide::Value load(const float* from) noexcept { return Wide::load(from); }
  };
  struct F16 {
    using Stored = std::uint16_t;
    using Lanes = Narrow;
    static constexpr int highest = 0x7bff;
    static constexpr auto scores_rest = &MaskKernels::scores_f16;
    static constexpr auto uppers_rest = &MaskKernels::uppers_f16;
    static typename Wide::Value load(const std::uint16_t* from) noexcept { return Wide::of_f16(from); }
  };
  struct BF16 {
    using Stored = std::uint16_t;
    using Lanes = Narrow;
    static constexpr int highest = 0x7f7f;
    static constexpr auto scores_rest = &MaskKernels::scores_bf16;
    static constexpr auto uppers_rest = &MaskKernels::uppers_bf16;
    static typename Wide::Value load(const std::uint16_t* from) noexcept { return Wide::of_bf16(from); }
  };

  static const float* at(const float* norm, std::int64_t c) noexcept { return norm == nullptr ? nullptr : norm + c; }

  /// Bits of the products, whose sign is the weights'.
  template <class Element>
  static typename Wide::Value product(const typename Element::Stored* row, const float* norm) noexcept {
    return norm == nullptr ? Element::load(row) : Wide::times(Element::load(row), norm);
  }

  template <class Element>
  static void scores(const typename Element::Stored* row, const float* norm, std::int64_t count,
                     std::int32_t* keys) noexcept {
    std::int64_t c = 0;
    for (; c + kFloats <= count; c += kFloats) {
      Wide::store(keys + c, Wide::magnitude(product<Element>(row + c, at(norm, c))));
    }
    (mask_scalar.*Element::scores_rest)(row + c, at(norm, c), count - c, keys + c);
  }

  template <class Element>
  static bool uppers(const typename Element::Stored* row, const float* norm, std::int64_t count,
                     std::int16_t* out) noexcept {
    using L = typename Element::Lanes;
    typename L::Value highest = L::fill(0);
    std::int64_t c = 0;
    for (; c + kHalves <= count; c += kHalves) {
      // To the second cache: the first one is full of upper halves.
      prefetch<8192, Cache::second>(row + c, kHalves * static_cast<std::int64_t>(sizeof *row));
      for (std::int64_t k = 0; k < kHalves; k += L::kWidth) {
        highest = L::higher(highest, L::magnitude(L::load(row + c + k)));
      }
      const auto low = product<Element>(row + c, at(norm, c));
      const auto high = product<Element>(row + c + kFloats, at(norm, c + kFloats));
      Narrow::store(out + c, Narrow::magnitude(Wide::upper_halves(low, high)));
    }
    const bool is_finite = !L::any(L::greater(highest, L::fill(Element::highest)));
    return (mask_scalar.*Element::uppers_rest)(row + c, at(norm, c), count - c, out + c) && is_finite;
  }

  static std::int64_t count_above(const std::int16_t* values, std::int64_t count, std::int16_t limit) noexcept {
    const auto limits = Narrow::fill(limit);
    constexpr std::int64_t kBlock = 16384 * kHalves;  // what a Counter holds
    std::int64_t above = 0;
    for (std::int64_t begin = 0; begin < count; begin += kBlock) {
      const std::int64_t end = count - begin < kBlock ? count : begin + kBlock;
      typename Narrow::Counter first, second;
      for (std::int64_t c = begin; c < end; c += 2 * kHalves) {
        first.add(Narrow::greater(Narrow::load(values + c), limits));
        second.add(Narrow::greater(Narrow::load(values + c + kHalves), limits));
      }
      above += first.total() + second.total();
    }
    return above;
  }

  static std::int64_t find_equal(const std::int16_t* values, std::int64_t count, std::int16_t value,
                                 std::uint32_t* columns) noexcept {
    const auto wanted = Narrow::fill(value);
    std::int64_t found = 0;
    for (std::int64_t c = 0; c < count; c += 2 * kHalves) {
      const auto first = Narrow::equal(Narrow::load(values + c), wanted);
      const auto second = Narrow::equal(Narrow::load(values + c + kHalves), wanted);
      for (std::uint64_t bits = Narrow::bits(first, second); bits != 0; bits &= bits - 1) {
        columns[found++] = static_cast<std::uint32_t>(c) + static_cast<std::uint32_t>(__builtin_ctzll(bits));
      }
    }
    return found;
  }

  static void write_mask(const std::int16_t* uppers, std::int64_t count, std::int16_t limit,
                         std::uint8_t* mask) noexcept {
    const auto below = Narrow::fill(limit - 1);
    std::int64_t c = 0;
    for (; c + 2 * kHalves <= count; c += 2 * kHalves) {
      prefetch<2048>(mask + c, 2 * kHalves);
      Narrow::store_bytes(mask + c, Narrow::greater(Narrow::load(uppers + c), below),
                          Narrow::greater(Narrow::load(uppers + c + kHalves), below));
    }
    mask_scalar.write_mask(uppers + c, count - c, limit, mask + c);
  }

  /// Stores the elements kept, and zeros; counts the zeros.
  template <class L>
  static std::int64_t keep_those(typename L::Mask kept, typename L::Bits* row) noexcept {
    const auto values = L::load_where(kept, row);
    L::store(row, values);
    return L::count(L::is_zero(values));
  }
  static std::int64_t keep(typename Narrow::Mask kept, std::uint16_t* row) noexcept {
    return keep_those<Narrow>(kept, row);
  }
  static std::int64_t keep(typename Narrow::Mask kept, std::uint32_t* row) noexcept {
    return keep_those<Wide>(Wide::low(kept), row) + keep_those<Wide>(Wide::high(kept), row + kFloats);
  }

  template <class Bits,
            std::int64_t (*MaskKernels::*rest)(const std::int16_t*, std::int64_t, std::int16_t, Bits*) noexcept>
  static std::int64_t prune(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, Bits* row) noexcept {
    const auto below = Narrow::fill(limit - 1);
    std::int64_t zeros = 0, c = 0;
    for (; c + kHalves <= count; c += kHalves) {
      zeros += keep(Narrow::greater(Narrow::load(uppers + c), below), row + c);
    }
    return zeros + (mask_scalar.*rest)(uppers + c, count - c, limit, row + c);
  }

  template <class Bits, std::int64_t (*MaskKernels::*rest)(const std::uint8_t*, std::int64_t, Bits*) noexcept>
  static std::int64_t apply(const std::uint8_t* mask, std::int64_t count, Bits* row) noexcept {
    std::int64_t zeros = 0, c = 0;
    for (; c + kHalves <= count; c += kHalves) zeros += keep(Narrow::of_bytes(mask + c), row + c);
    return zeros + (mask_scalar.*rest)(mask + c, count - c, row + c);
  }

  static constexpr MaskKernels kernels(decltype(MaskKernels::uppers_bf16) uppers_bf16 = uppers<BF16>) noexcept {
    return {scores<F32>,
            scores<F16>,
            scores<BF16>,
            uppers<F32>,
            uppers<F16>,
            uppers_bf16,
            count_above,
            find_equal,
            write_mask,
            prune<std::uint16_t, &MaskKernels::prune_u16>,
            prune<std::uint32_t, &MaskKernels::prune_u32>,
            apply<std::uint16_t, &MaskKernels::apply_u16>,
            apply<std::uint32_t, &MaskKernels::apply_u32>};
  }
};

}  // namespace
}  // namespace stun_ext::detail
