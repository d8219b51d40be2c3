// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

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
  compute_exact(block_a, block_b, work, limit, sink);
}

void NearPairsPass::hand_on_many(std::vector<NearPair>& found, PairConsumer& sink) {
  if (found.size() < kPairsAtATime) return;
  sink.take(found);
  found.clear();
}

void NearPairsPass::reduce_items(const Block& block_a, const Block& block_b, bool is_same, Workspace& work,
                                 double limit, PairConsumer& sink) {
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
        if (dots[j] > limit_a + half_b[j]) add_item_pair(block_a, i, block_b, j, work, limit, sink);
      }
    }
    hand_on_many(work.found, sink);
  }
}

void NearPairsPass::add_item_pair(const Block& block_a, std::int64_t i, const Block& block_b, std::int64_t j,
                                  Workspace& work, double limit, PairConsumer& sink) {
  // Items are clusters: by size, or in order.
  const auto place_of = [&](const Block& block, std::int64_t k) {
    return by_centroid_ ? items_[static_cast<std::size_t>(block.begin + k)]
                        : block.first_cluster + static_cast<std::uint32_t>(k);
  };
  const std::uint32_t a = place_of(block_a, i), b = place_of(block_b, j);
  if (!takes_bounds_) {
    work.exact.push_back({method_ == Linkage::complete ? 0.0 : kInfinity, a, b, false});
    work.candidates.push_back({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(j),
                               static_cast<std::uint32_t>(work.exact.size() - 1)});
    if (work.candidates.size() >= exact_at_a_time(plan_.block_rows)) compute_exact(block_a, block_b, work, limit, sink);
    return;
  }
  NearPair pair = {lower_bound(i, j, work), std::min(a, b) & 0x7fffffffu, 1, std::max(a, b)};
  if (method_ == Linkage::ward) {
    const auto size_a = static_cast<double>(forest_.size(ids_[a])), size_b = static_cast<double>(forest_.size(ids_[b]));
    pair.distance *= std::sqrt(2.0 * size_a * size_b / (size_a + size_b));
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
          add_extreme(block_a, a, i0, i1, block_b, j0, j1, c, e, is_partial, work);
          if (work.candidates.size() >= exact_at_a_time(plan_.block_rows))
            compute_exact(block_a, block_b, work, limit, sink);
          continue;
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

// The farthest (complete) or nearest pair of rows: those that may be it, given the products' error, are to be computed.
void NearPairsPass::add_extreme(const Block& block_a, const GramPanel& a, std::int64_t i0, std::int64_t i1,
                                const Block& block_b, std::int64_t j0, std::int64_t j1, std::uint32_t place_a,
                                std::uint32_t place_b, bool is_partial, Workspace& work) const {
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
  const auto wanted = static_cast<std::uint32_t>(work.exact.size());
  work.exact.push_back({-sign * kInfinity, place_a, place_b, is_partial});
  for (std::int64_t i = i0; i < i1; ++i) {
    for (std::int64_t j = j0; j < j1; ++j) {
      if (best != -kInfinity && approximate(i, j) < best - 2.0 * work.margin) continue;
      if (work.candidates.size() < exact_at_a_time(plan_.block_rows)) {
        work.candidates.push_back({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(j), wanted});
      } else {  // many ties
        take_extreme(work.exact.back().squared,
                     squared_distance(rows_, items_[static_cast<std::size_t>(block_a.begin + i)],
                                      items_[static_cast<std::size_t>(block_b.begin + j)]));
      }
    }
  }
}

/// Of squared distances between rows, the one that counts for their clusters.
void NearPairsPass::take_extreme(double& squared, double other) const noexcept {
  squared = method_ == Linkage::complete ? std::max(squared, other) : std::min(squared, other);
}

// Row by row of a, so that one is read once for many of b, and together, so that these stay in cache.
void NearPairsPass::compute_exact(const Block& block_a, const Block& block_b, Workspace& work, double limit,
                                  PairConsumer& sink) {
  if (work.exact.empty()) return;
  const std::size_t count = work.candidates.size();
  work.first_of_row.assign(static_cast<std::size_t>(block_a.count()) + 1, 0u);
  for (const Workspace::Candidate& candidate : work.candidates) ++work.first_of_row[candidate.i + 1];
  std::partial_sum(work.first_of_row.begin(), work.first_of_row.end(), work.first_of_row.begin());
  work.row_pairs.resize(count);
  work.wanted_of.resize(count);
  work.squared.resize(count);
  const auto row_of = [&](const Block& block, std::uint32_t item) -> std::int64_t {
    return items_[static_cast<std::size_t>(block.begin) + item];
  };
  for (const Workspace::Candidate& candidate : work.candidates) {
    const std::uint32_t place = work.first_of_row[candidate.i]++;
    work.row_pairs[place] = {row_of(block_a, candidate.i), row_of(block_b, candidate.j)};
    work.wanted_of[place] = candidate.wanted;
  }
  squared_distances(RowSource(distance_kernels(), rows_), work.row_pairs, norms_.data(), work.squared.data());
  for (std::size_t k = 0; k < count; ++k) {
    take_extreme(work.exact[work.wanted_of[k]].squared, work.squared[k]);
  }
  for (const Workspace::Wanted& wanted : work.exact) {
    const double distance = std::sqrt(wanted.squared);
    if (wanted.is_partial) {
      add_partial(wanted.place_a, wanted.place_b, distance);
    } else if (distance < limit) {
      const auto [low, high] = std::minmax(wanted.place_a, wanted.place_b);
      work.found.push_back({distance, low & 0x7fffffffu, 0, high});
      hand_on_many(work.found, sink);
    }
  }
  work.exact.clear();
  work.candidates.clear();
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
