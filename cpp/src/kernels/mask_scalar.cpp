// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "../load.hpp"
#include "mask.hpp"

namespace stun_ext::detail {
namespace {

template <class Element>
void scores(const Element* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  constexpr std::uint32_t kMagnitude = 0x7fffffffu;
  if (norm == nullptr) {
    for (std::int64_t c = 0; c < count; ++c) {
      keys[c] = static_cast<std::int32_t>(bits_from_float(to_float(row[c])) & kMagnitude);
    }
  } else {
    for (std::int64_t c = 0; c < count; ++c) {
      // The norm is not negative: the product's sign is the weight's, and is masked away after it.
      keys[c] = static_cast<std::int32_t>(bits_from_float(to_float(row[c]) * norm[c]) & kMagnitude);
    }
  }
}

/// The bucket in which the element of this (zero-based) rank lies; `rank` becomes its rank within the bucket.
int bucket_of_rank(const std::uint32_t* histogram, int buckets, std::int64_t& rank) noexcept {
  int bucket = 0;
  while (bucket + 1 < buckets && rank >= static_cast<std::int64_t>(histogram[bucket])) {
    rank -= static_cast<std::int64_t>(histogram[bucket]);
    ++bucket;
  }
  return bucket;
}

/// One more round: keeps the candidates whose next `bits` bits are those of the rank sought.
std::int64_t narrow(std::int32_t* candidates, std::int64_t count, int shift, int bits, std::int64_t& rank,
                    std::uint32_t* histogram) noexcept {
  const std::int32_t mask = (1 << bits) - 1;
  std::memset(histogram, 0, sizeof(std::uint32_t) << bits);
  for (std::int64_t c = 0; c < count; ++c) ++histogram[(candidates[c] >> shift) & mask];
  const int bucket = bucket_of_rank(histogram, 1 << bits, rank);
  std::int64_t kept = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    const std::int32_t key = candidates[c];
    candidates[kept] = key;
    kept += ((key >> shift) & mask) == bucket;
  }
  return kept;
}

template <class Element>
std::int64_t prune(const std::int32_t* keys, std::int64_t count, Cut cut, Element* row) noexcept {
  constexpr auto kMagnitude = static_cast<Element>(static_cast<Element>(~Element{0}) >> 1);
  std::int32_t zeros = 0;  // at most count; rows are shorter than 2^31
  for (std::int64_t c = 0; c < cut.tie_end; ++c) {
    const Element value = keys[c] <= cut.key ? Element{0} : row[c];
    row[c] = value;
    zeros += (value & kMagnitude) == 0;
  }
  for (std::int64_t c = cut.tie_end; c < count; ++c) {
    const Element value = keys[c] < cut.key ? Element{0} : row[c];
    row[c] = value;
    zeros += (value & kMagnitude) == 0;
  }
  return zeros;
}

/// A score is kept if fewer than n others come before it: the higher ones, and equal ones to its right.
template <int m>
void keep_by_counting(const float* scores, std::int64_t n, std::uint8_t* mask) noexcept {
  for (int c = 0; c < m; ++c) {
    int before = 0;
    for (int k = 0; k < c; ++k) before += scores[k] > scores[c];
    for (int k = c + 1; k < m; ++k) before += scores[k] >= scores[c];
    mask[c] = before < n;
  }
}

void scores_f32(const float* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  scores(row, norm, count, keys);
}
void scores_f16(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  scores(reinterpret_cast<const Half*>(row), norm, count, keys);
}
void scores_bf16(const std::uint16_t* row, const float* norm, std::int64_t count, std::int32_t* keys) noexcept {
  scores(reinterpret_cast<const BFloat16*>(row), norm, count, keys);
}

Cut find_cut(const std::int32_t* keys, std::int64_t count, std::int64_t count_pruned, CutWorkspace workspace) noexcept {
  constexpr int kFirstShift = 20;
  // Several histograms, so that equal buckets in a row do not wait for each other.
  std::uint32_t* histogram = workspace.histogram;
  std::memset(histogram, 0, kCutHistograms * kCutBuckets * sizeof(std::uint32_t));
  std::int64_t c = 0;
  for (; c + kCutHistograms <= count; c += kCutHistograms) {
    for (int h = 0; h < kCutHistograms; ++h) ++histogram[h * kCutBuckets + (keys[c + h] >> kFirstShift)];
  }
  for (; c < count; ++c) ++histogram[keys[c] >> kFirstShift];
  for (int h = 1; h < kCutHistograms; ++h) {
    for (int bucket = 0; bucket < kCutBuckets; ++bucket) histogram[bucket] += histogram[h * kCutBuckets + bucket];
  }

  std::int64_t rank = count_pruned - 1;
  const int bucket = bucket_of_rank(histogram, kCutBuckets, rank);
  std::int64_t candidates = 0;
  for (c = 0; c < count; ++c) {
    workspace.candidates[candidates] = keys[c];
    candidates += (keys[c] >> kFirstShift) == bucket;
  }
  candidates = narrow(workspace.candidates, candidates, 10, 10, rank, histogram);
  candidates = narrow(workspace.candidates, candidates, 0, 10, rank, histogram);

  // All candidates equal the cut now, and `rank` of them lie before the last one to go.
  const std::int32_t key = workspace.candidates[0];
  if (rank + 1 == candidates) return {key, count};
  std::int64_t ties = rank + 1;
  for (c = 0; ties > 0; ++c) ties -= keys[c] == key;
  return {key, c};
}

void write_mask(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint8_t* mask) noexcept {
  for (std::int64_t c = 0; c < cut.tie_end; ++c) mask[c] = keys[c] > cut.key;
  for (std::int64_t c = cut.tie_end; c < count; ++c) mask[c] = keys[c] >= cut.key;
}

std::int64_t prune_u16(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint16_t* row) noexcept {
  return prune(keys, count, cut, row);
}
std::int64_t prune_u32(const std::int32_t* keys, std::int64_t count, Cut cut, std::uint32_t* row) noexcept {
  return prune(keys, count, cut, row);
}

void keep_highest(const float* scores, std::int64_t n, std::int64_t m, std::uint8_t* mask,
                  std::int64_t* order) noexcept {
  if (m == 4) return keep_by_counting<4>(scores, n, mask);
  if (m == 8) return keep_by_counting<8>(scores, n, mask);
  for (std::int64_t c = 0; c < m; ++c) order[c] = c;
  std::nth_element(order, order + (m - n), order + m, [scores](std::int64_t a, std::int64_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a < b;
  });
  for (std::int64_t c = 0; c < m; ++c) mask[order[c]] = c >= m - n;
}

}  // namespace

const MaskKernels mask_scalar = {scores_f32, scores_f16, scores_bf16, find_cut,
                                 write_mask, prune_u16,  prune_u32,   keep_highest};

}  // namespace stun_ext::detail
