// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "../load.hpp"
#include "check.hpp"
#include "mask.hpp"

namespace stun_ext::detail {
namespace {

/// Calls write(c, key). The norm is not negative: the product's sign is the weight's, and is masked away after it.
template <class Element, class Write>
void for_each_key(const Element* row, const float* norm, std::int64_t count, Write&& write) noexcept {
  constexpr std::uint32_t kMagnitude = 0x7fffffffu;
  if (norm == nullptr) {
    for (std::int64_t c = 0; c < count; ++c) write(c, bits_from_float(to_float(row[c])) & kMagnitude);
  } else {
    for (std::int64_t c = 0; c < count; ++c) write(c, bits_from_float(to_float(row[c]) * norm[c]) & kMagnitude);
  }
}

template <class Element, class Stored>
void scores(const Stored* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  for_each_key(reinterpret_cast<const Element*>(row), norm, count,
               [keys](std::int64_t c, std::uint32_t key) { keys[c] = static_cast<std::int32_t>(key); });
}

bool is_finite(const float* row, std::int64_t count) noexcept {
  return !check_scalar.any_above_u32(reinterpret_cast<const std::uint32_t*>(row), count, 0x7f7fffffu);
}
bool is_finite(const Half* row, std::int64_t count) noexcept {
  return !check_scalar.any_above_u16(&row->bits, count, 0x7bffu);
}
bool is_finite(const BFloat16* row, std::int64_t count) noexcept {
  return !check_scalar.any_above_u16(&row->bits, count, 0x7f7fu);
}

template <class Element, class Stored>
bool uppers(const Stored* row, const float* norm, std::int64_t count, std::int16_t* out) noexcept {
  const auto* elements = reinterpret_cast<const Element*>(row);
  for_each_key(elements, norm, count,
               [out](std::int64_t c, std::uint32_t key) { out[c] = static_cast<std::int16_t>(key >> 16); });
  return is_finite(elements, count);
}

std::int64_t count_above(const std::int16_t* values, std::int64_t count, std::int16_t limit) noexcept {
  constexpr std::int64_t kBlock = 16384;  // a sum of 16 bits holds it, and sixteen bits are what vectorises best
  std::int64_t total = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(count, begin + kBlock);
    std::uint16_t above = 0;
    for (std::int64_t c = begin; c < end; ++c) above = static_cast<std::uint16_t>(above + (values[c] > limit));
    total += above;
  }
  return total;
}

std::int64_t find_equal(const std::int16_t* values, std::int64_t count, std::int16_t value,
                        std::uint32_t* columns) noexcept {
  std::int64_t found = 0;
  for (std::int64_t block = 0; block < count; block += kUpperMultiple) {
    int any = 0;
    for (std::int64_t c = block; c < block + kUpperMultiple; ++c) any |= values[c] == value;
    for (std::int64_t c = block; any != 0 && c < block + kUpperMultiple; ++c) {
      if (values[c] == value) columns[found++] = static_cast<std::uint32_t>(c);
    }
  }
  return found;
}

void write_mask(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, std::uint8_t* mask) noexcept {
  for (std::int64_t c = 0; c < count; ++c) mask[c] = uppers[c] >= limit;
}

/// Zeroes where keeps(c) is false.
template <class Bits, class Keeps>
std::int64_t zero(std::int64_t count, Bits* row, Keeps&& keeps) noexcept {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  constexpr std::int64_t kBlock = 16384;  // as in count_above
  std::int64_t total = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(count, begin + kBlock);
    std::uint16_t zeros = 0;
    for (std::int64_t c = begin; c < end; ++c) {
      const Bits value = keeps(c) ? row[c] : Bits{0};
      row[c] = value;
      zeros = static_cast<std::uint16_t>(zeros + ((value & kMagnitude) == 0));
    }
    total += zeros;
  }
  return total;
}

template <class Bits>
std::int64_t prune(const std::int16_t* uppers, std::int64_t count, std::int16_t limit, Bits* row) noexcept {
  return zero(count, row, [=](std::int64_t c) { return uppers[c] >= limit; });
}

template <class Bits>
std::int64_t apply(const std::uint8_t* mask, std::int64_t count, Bits* row) noexcept {
  return zero(count, row, [=](std::int64_t c) { return mask[c] != 0; });
}

}  // namespace

const MaskKernels mask_scalar = {scores<float>,       scores<Half>,         scores<BFloat16>,     uppers<float>,
                                 uppers<Half>,        uppers<BFloat16>,     count_above,          find_equal,
                                 write_mask,          prune<std::uint16_t>, prune<std::uint32_t>, apply<std::uint16_t>,
                                 apply<std::uint32_t>};

}  // namespace stun_ext::detail
