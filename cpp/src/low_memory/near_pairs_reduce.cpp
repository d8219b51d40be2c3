// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "low_memory/near_pairs.hpp"

// What becomes of the products of two blocks.
namespace stun_ext::detail {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

void NearPairsPass::reduce(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same, double limit,
                           Workspace& work, PairConsumer& sink) {
  if (by_centroid_ || (is_single(block_a) && is_single(block_b))) {
    reduce_items(block_a, block_b, is_same, work, limit, sink);
  } else {
    reduce_groups(block_a, a, block_b, is_same, work, limit, sink);
  }
}

void NearPairsPass::hand_on_many(std::vector<NearPair>& found, PairConsumer& sink) {
  if (found.size() < kPairsAtATime) return;
  sink.take(found);
  found.clear();
}

void NearPairsPass::reduce_items(const Block& block_a, const Block& block_b, bool is_same, Workspace& work,
                                 double limit, PairConsumer& sink) const {
  constexpr std::int64_t kChunk = 32;
  const float* half_b = work.half_b.data();
  const std::int64_t count = block_b.count();
  for (std::int64_t i = 0; i < block_a.count(); ++i) {
    const float* dots = work.dots.data() + i * stride();
    const float limit_a = work.limit_a[static_cast<std::size_t>(i)];
    for (std::int64_t j0 = is_same ? i + 1 : 0; j0 < count; j0 += kChunk) {
      const std::int64_t j1 = std::min(j0 + kChunk, count);
      int near = 0;
      for (std::int64_t j = j0; j < j1; ++j) near |= dots[j] > limit_a + half_b[j];
      if (near == 0) continue;
      for (std::int64_t j = j0; j < j1; ++j) {
        if (dots[j] > limit_a + half_b[j]) add_item_pair(block_a, i, block_b, j, work, limit);
      }
    }
    hand_on_many(work.found, sink);
  }
}

void NearPairsPass::add_item_pair(const Block& block_a, std::int64_t i, const Block& block_b, std::int64_t j,
                                  Workspace& work, double limit) const {
  // Items are clusters: by size, or in order.
  const auto place_of = [&](const Block& block, std::int64_t k) {
    return by_centroid_ ? items_[static_cast<std::size_t>(block.begin + k)]
                        : block.first_cluster + static_cast<std::uint32_t>(k);
  };
  const std::uint32_t a = place_of(block_a, i), b = place_of(block_b, j);
  NearPair pair = {0.0, std::min(a, b) & 0x7fffffffu, takes_bounds_, std::max(a, b)};
  if (!takes_bounds_) {
    pair.distance = std::sqrt(squared_distance(rows_, ids_[a], ids_[b]));
  } else {
    pair.distance = lower_bound(i, j, work);
    if (method_ == Linkage::ward) {
      const auto size_a = static_cast<double>(forest_.size(ids_[a])),
                 size_b = static_cast<double>(forest_.size(ids_[b]));
      pair.distance *= std::sqrt(2.0 * size_a * size_b / (size_a + size_b));
    }
  }
  if (pair.distance < limit) work.found.push_back(pair);
}

/// What the distance between two items of the blocks at hand is at least.
double NearPairsPass::lower_bound(std::int64_t i, std::int64_t j, const Workspace& work) const {
  const double half = static_cast<double>(work.lower_a[static_cast<std::size_t>(i)]) +
                      static_cast<double>(work.half_b[static_cast<std::size_t>(j)]) -
                      static_cast<double>(work.dots[static_cast<std::size_t>(i * stride() + j)]);
  return std::sqrt(2.0 * std::max(half, 0.0)) / frame_.scale * (1.0 - 1e-9);
}

void NearPairsPass::reduce_groups(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same,
                                  Workspace& work, double limit, PairConsumer& sink) {
  const std::int64_t count = block_b.count();
  const float* half_b = work.half_b.data();
  float* folded = work.folded.data();
  const auto clamp_to = [](const Block& block, std::int64_t item) {
    return std::min(std::max(item, block.begin), block.end) - block.begin;
  };
  for (std::uint32_t c = block_a.first_cluster; c <= block_a.last_cluster; ++c) {
    const std::int64_t i0 = clamp_to(block_a, start_[c]), i1 = clamp_to(block_a, start_[c + 1]);
    // Over the rows of cluster c, for each column: what decides whether some cluster there may be near.
    for (std::int64_t i = i0; i < i1; ++i) {
      const float* dots = work.dots.data() + i * stride();
      const float limit_a = work.limit_a[static_cast<std::size_t>(i)];
      const float lower_a = work.lower_a[static_cast<std::size_t>(i)];
      const bool is_first = i == i0;
      if (method_ == Linkage::complete) {  // all pairs must be near
        for (std::int64_t j = 0; j < count; ++j) {
          const float excess = dots[j] - (limit_a + half_b[j]);
          folded[j] = is_first || excess < folded[j] ? excess : folded[j];
        }
      } else if (method_ == Linkage::single) {  // one pair must be near
        for (std::int64_t j = 0; j < count; ++j) {
          const float excess = dots[j] - (limit_a + half_b[j]);
          folded[j] = is_first || excess > folded[j] ? excess : folded[j];
        }
      } else {  // average: the sum of lower bounds
        for (std::int64_t j = 0; j < count; ++j) {
          const float lower = lower_a + half_b[j] - dots[j];
          folded[j] = (is_first ? 0.0f : folded[j]) + std::sqrt(lower > 0.0f ? lower : 0.0f);
        }
      }
    }
    for (std::uint32_t e = is_same ? c + 1 : block_b.first_cluster; e <= block_b.last_cluster; ++e) {
      if (c == e) continue;
      const std::int64_t j0 = clamp_to(block_b, start_[e]), j1 = clamp_to(block_b, start_[e + 1]);
      const bool is_partial = block_a.is_partial || block_b.is_partial;
      double value;
      bool is_bound = false;
      if (method_ == Linkage::average) {
        const auto size = static_cast<double>((i1 - i0) * (j1 - j0));
        double sum = 0.0;
        for (std::int64_t j = j0; j < j1; ++j) sum += folded[j];
        // d >= √2·√(…); 1e-4 covers the float32 roundings of a sum of up to block_rows terms.
        value = sum * std::sqrt(2.0) / frame_.scale * (1.0 - 1e-4);
        is_bound = true;
        if (!is_partial) {
          value /= size;
        }
      } else {
        float best = folded[j0];
        for (std::int64_t j = j0 + 1; j < j1; ++j) {
          best = method_ == Linkage::complete ? std::min(best, folded[j]) : std::max(best, folded[j]);
        }
        is_bound = takes_bounds_ && !is_partial && (i1 - i0) * (j1 - j0) <= kLazyPairs;
        if (!(best > 0.0f)) {
          value = kInfinity;
        } else if (is_bound) {
          value = 0.0;
          for (std::int64_t i = i0; i < i1; ++i) {
            for (std::int64_t j = j0; j < j1; ++j) value = std::max(value, lower_bound(i, j, work));
          }
        } else {
          value = extreme(a, block_a, i0, i1, block_b, j0, j1, work);
        }
      }
      if (is_partial) {
        add_partial(c, e, value);
      } else if (value < limit) {
        work.found.push_back({value, std::min(c, e) & 0x7fffffffu, is_bound, std::max(c, e)});
      }
    }
    hand_on_many(work.found, sink);
  }
}

// The farthest (complete) or nearest pair of rows: exact distances of those that may be it, given the products' error.
double NearPairsPass::extreme(const GramPanel& a, const Block& block_a, std::int64_t i0, std::int64_t i1,
                              const Block& block_b, std::int64_t j0, std::int64_t j1, Workspace& work) const {
  const double sign = method_ == Linkage::complete ? 1.0 : -1.0;
  const auto approximate = [&](std::int64_t i, std::int64_t j) {
    return sign * (a.squared_norm(i) + work.panel.squared_norm(j) -
                   2.0 * static_cast<double>(work.dots[static_cast<std::size_t>(i * stride() + j)]));
  };
  double best = -kInfinity;
  if ((i1 - i0) * (j1 - j0) > 1) {
    for (std::int64_t i = i0; i < i1; ++i) {
      for (std::int64_t j = j0; j < j1; ++j) best = std::max(best, approximate(i, j));
    }
  }
  double exact = -kInfinity;
  for (std::int64_t i = i0; i < i1; ++i) {
    for (std::int64_t j = j0; j < j1; ++j) {
      if (best != -kInfinity && approximate(i, j) < best - 2.0 * work.margin) continue;
      exact = std::max(exact, sign * squared_distance(rows_, items_[static_cast<std::size_t>(block_a.begin + i)],
                                                      items_[static_cast<std::size_t>(block_b.begin + j)]));
    }
  }
  return std::sqrt(sign * exact);
}

void NearPairsPass::add_partial(std::uint32_t place_a, std::uint32_t place_b, double value) {
  // Kept with the big one; of two big ones with the first.
  if (big_[place_a] == kNone || (big_[place_b] != kNone && place_b < place_a)) std::swap(place_a, place_b);
  const std::uint32_t big = big_[place_a];
  const std::lock_guard<std::mutex> lock(partial_mutex_[big]);
  double& partial = partials_[big][place_b];
  if (method_ == Linkage::average) {
    partial += value;
  } else {
    partial = method_ == Linkage::complete ? std::max(partial, value) : std::min(partial, value);
  }
}

void NearPairsPass::emit_partials(PairConsumer& sink) {
  std::vector<NearPair> found;
  for (std::size_t big = 0; big < bigs_.size(); ++big) {
    const std::uint32_t place = bigs_[big];
    for (std::uint32_t other = 0; other < ids_.size(); ++other) {
      if (other == place || (big_[other] != kNone && other < place)) continue;
      double value = partials_[big][other];
      if (method_ == Linkage::average) {
        value /= static_cast<double>(forest_.size(ids_[place])) * static_cast<double>(forest_.size(ids_[other]));
      }
      if (value < sink.limit()) {
        found.push_back(
            {value, std::min(place, other) & 0x7fffffffu, method_ == Linkage::average, std::max(place, other)});
      }
      hand_on_many(found, sink);
    }
    std::vector<double>().swap(partials_[big]);
  }
  sink.take(found);
}

}  // namespace stun_ext::detail
