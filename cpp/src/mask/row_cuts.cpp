// SPDX-License-Identifier: Apache-2.0
#include "mask/row_cuts.hpp"

#include <algorithm>

#include "load.hpp"

namespace stun_ext::detail {
namespace {

constexpr int kNoHint = -32769;  // below every value
constexpr int kHighest = 32767;  // above every upper half: finite weights and norms give at most infinity's, 32640
constexpr int kGuesses = 8;      // before a search falls back on halving
constexpr std::int64_t kSample = 1024;

std::size_t padded(std::int64_t count) noexcept {
  return static_cast<std::size_t>((count + kUpperMultiple - 1) / kUpperMultiple * kUpperMultiple);
}

/// The lower 16 bits of the scores at some columns, biased so that they order as signed integers.
template <class Element>
void load_lowers(const Element* row, const float* norm, const std::uint32_t* columns, std::int64_t count,
                 std::int16_t* out) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t c = columns[i];
    const float weight = to_float(row[c]);
    const std::uint32_t key = bits_from_float(norm == nullptr ? weight : weight * norm[c]);
    out[i] = static_cast<std::int16_t>((key & 0xffffu) ^ 0x8000u);
  }
}

}  // namespace

RowCuts::RowCuts(const Scoring& scoring, std::int64_t cols)
    : scoring_(scoring),
      cols_(cols),
      hint_(kNoHint),
      density_(std::max<std::int64_t>(cols / 256, 1)),
      uppers_(padded(cols), kUpperPadding),
      lowers_(padded(cols)),
      columns_(padded(cols)) {}

bool RowCuts::load(const void* row) noexcept {
  row_ = row;
  return scoring_.uppers(row, cols_, uppers_.data());
}

RowCut RowCuts::find(std::int64_t wanted) noexcept {
  if (wanted == 0) return {0, {}};
  if (wanted == cols_) return {static_cast<std::int16_t>(kHighest), {}};
  if (hint_ == kNoHint && cols_ > 4 * kSample) {
    hint_ =
        value_of_rank(uppers_.data(), kSample, kSample, std::max<std::int64_t>(wanted * kSample / cols_, 1), kNoHint, 1)
            .value;
  }
  const Rank rank =
      value_of_rank(uppers_.data(), cols_, static_cast<std::int64_t>(uppers_.size()), wanted, hint_, density_);
  const auto limit = static_cast<std::int16_t>(rank.value);
  const std::int64_t found =
      scoring_.kernels->find_equal(uppers_.data(), static_cast<std::int64_t>(uppers_.size()), limit, columns_.data());
  hint_ = rank.value;
  density_ = found;
  const std::int64_t going = keep_lowest(found, wanted - rank.below);
  return {limit, {columns_.data(), static_cast<std::size_t>(going)}};
}

/// The `wanted`-th lowest value, from 1. @param hint  where to look first, or kNoHint.
RowCuts::Rank RowCuts::value_of_rank(const std::int16_t* values, std::int64_t count, std::int64_t padded_count,
                                     std::int64_t wanted, int hint, std::int64_t density) const noexcept {
  // Fewer than `wanted` values are at most `low`, and at least as many at most `high`.
  int low = kNoHint, high = kHighest;
  std::int64_t at_low = 0, at_high = count;
  double step = 0;
  for (int guesses = 0; high - low > 1; ++guesses) {
    int limit = low + (high - low) / 2;
    if (hint != kNoHint && guesses < kGuesses) {
      double guess = hint;
      if (low != kNoHint && high != kHighest) {  // on the line between both
        guess =
            low + (high - low) * (static_cast<double>(wanted - at_low) - 0.5) / static_cast<double>(at_high - at_low);
      } else if (guesses > 0) {  // beyond the last one, as far as the density says and a little more
        const bool is_low = low != kNoHint;
        const auto missing = static_cast<double>(is_low ? wanted - at_low : at_high - wanted);
        step = std::max(2 * step, 1 + 1.25 * missing / static_cast<double>(density));
        guess = is_low ? low + step : high - step;
      }
      limit = static_cast<int>(std::min(std::max(guess, low + 1.0), high - 1.0));
    }
    const std::int64_t at_limit =
        count - scoring_.kernels->count_above(values, padded_count, static_cast<std::int16_t>(limit));
    const bool is_low = at_limit < wanted;  // selected without branches: no processor foresees this
    low = is_low ? limit : low;
    at_low = is_low ? at_limit : at_low;
    high = is_low ? high : limit;
    at_high = is_low ? at_high : at_limit;
  }
  return {high, at_low};
}

/// Leaves, of the `found` columns that share the upper half of the cut, the `wanted` lowest; returns how many.
std::int64_t RowCuts::keep_lowest(std::int64_t found, std::int64_t wanted) noexcept {
  if (wanted == found) return found;
  std::uint32_t* columns = columns_.data();
  std::int16_t* lowers = lowers_.data();
  if (scoring_.dtype == DType::f32) {
    load_lowers(static_cast<const float*>(row_), scoring_.norm, columns, found, lowers);
  } else if (scoring_.dtype == DType::f16) {
    load_lowers(static_cast<const Half*>(row_), scoring_.norm, columns, found, lowers);
  } else {
    load_lowers(static_cast<const BFloat16*>(row_), scoring_.norm, columns, found, lowers);
  }
  const std::size_t end = padded(found);
  std::fill(lowers + found, lowers + end, kUpperPadding);
  const Rank rank = value_of_rank(lowers, found, static_cast<std::int64_t>(end), wanted, kNoHint, 1);
  std::int64_t ties = wanted - rank.below;
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < found; ++i) {
    const bool is_tie = lowers[i] == rank.value && ties > 0;
    ties -= is_tie;
    columns[kept] = columns[i];
    kept += is_tie || lowers[i] < rank.value;
  }
  return kept;
}

}  // namespace stun_ext::detail
