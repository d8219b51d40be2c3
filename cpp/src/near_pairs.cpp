// SPDX-License-Identifier: Apache-2.0
#include "near_pairs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "check.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::uint32_t kNone = 0xffffffffu;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kBatch = 1024;  // pairs that a thread collects before it hands them on

}  // namespace

// The closest pairs -------------------------------------------------------------------------------------------------

PairStore::PairStore(std::size_t capacity, double limit) : capacity_(capacity), limit_(limit) {
  pairs_.reserve(capacity + capacity / 4);
}

// Keeps what is closer than the capacity_-th closest. Nothing that belongs to the closest of all is ever thrown away,
// so the end does not depend on what came first.
void PairStore::cut() {
  overflowed_ = true;
  const auto nth = pairs_.begin() + static_cast<std::ptrdiff_t>(capacity_);
  std::nth_element(pairs_.begin(), nth, pairs_.end());
  const double limit = nth->distance;
  pairs_.erase(std::remove_if(pairs_.begin(), pairs_.end(), [=](const NearPair& p) { return p.distance >= limit; }),
               pairs_.end());
  limit_.store(limit, std::memory_order_relaxed);
}

void PairStore::take(const std::vector<NearPair>& pairs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const NearPair& pair : pairs) {
    if (pair.distance >= limit()) continue;
    if (pairs_.size() == pairs_.capacity()) cut();
    if (pair.distance < limit()) pairs_.push_back(pair);
  }
}

std::vector<NearPair> PairStore::finish() {
  if (pairs_.size() > capacity_) cut();
  std::sort(pairs_.begin(), pairs_.end());
  return std::move(pairs_);
}

// One pass ----------------------------------------------------------------------------------------------------------

struct NearPairsPass::Workspace {
  Workspace(std::int64_t block_rows, std::int64_t cols, const ConstMatrixView& rows, Linkage method,
            const Forest& forest, const CentroidSums* sums, const GramKernels& kernels)
      : panel(GramPanel::Side::b, block_rows, cols, kernels),
        dots(static_cast<std::size_t>((block_rows + kGramPadding) * (block_rows + kGramPadding))),
        limit_a(static_cast<std::size_t>(block_rows)),
        lower_a(limit_a.size()),
        half_b(limit_a.size()),
        folded(limit_a.size()),
        distance(rows, method, forest, sums) {}

  GramPanel panel;                ///< block B
  std::vector<double> centroids;  ///< of block B, if by centroid
  std::vector<double> centroid;   ///< of the item of A at hand
  std::int64_t centroid_of = -1;
  std::vector<float> dots;     ///< rows of stride() products
  std::vector<float> limit_a;  ///< a pair may be near if dot > limit_a[i] + half_b[j]
  std::vector<float> lower_a;  ///< d² >= 2 (lower_a[i] + half_b[j] − dot), in the frame's scale
  std::vector<float> half_b;   ///< ‖x_j‖²/2
  std::vector<float> folded;
  double margin = 0.0;  ///< largest error of a squared distance in the block, in the frame's scale
  ClusterDistance distance;
  std::vector<NearPair> found;
};

NearPairsPass::NearPairsPass(const ConstMatrixView& rows, const GramFrame& frame, Linkage method, const Forest& forest,
                             const CentroidSums* sums, PassPlan plan)
    : rows_(rows),
      frame_(frame),
      method_(method),
      by_centroid_(method == Linkage::ward || method == Linkage::centroid),
      forest_(forest),
      sums_(sums),
      plan_(plan) {}

double NearPairsPass::bytes(std::int64_t cols, Linkage method, PassPlan plan, int threads) noexcept {
  const bool by_centroid = method == Linkage::ward || method == Linkage::centroid;
  const auto r = static_cast<double>(plan.block_rows + kGramPadding);
  const double a = GramPanel::bytes(GramPanel::Side::a, plan.block_rows, cols) * static_cast<double>(plan.super_blocks);
  const double b = GramPanel::bytes(GramPanel::Side::b, plan.block_rows, cols) + 4.0 * r * r + 16.0 * r +
                   sizeof(NearPair) * static_cast<double>(kBatch) +
                   8.0 * static_cast<double>(cols) * (by_centroid ? r + 3.0 : 1.0);
  return a + b * threads;
}

void NearPairsPass::plan_blocks(const std::vector<std::uint32_t>& ids) {
  ids_ = ids;
  items_.clear();
  start_.clear();
  blocks_.clear();
  bigs_.clear();
  const std::int64_t rows = plan_.block_rows;
  if (by_centroid_) {
    // By size, so that the weights of Ward's distances are alike within a block.
    items_.resize(ids.size());
    std::iota(items_.begin(), items_.end(), 0u);
    std::stable_sort(items_.begin(), items_.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return forest_.size(ids[a]) < forest_.size(ids[b]); });
    const auto count = static_cast<std::int64_t>(items_.size());
    for (std::int64_t begin = 0; begin < count; begin += rows) {
      blocks_.push_back({begin, std::min(begin + rows, count), 0, 0, false});
    }
    return;
  }
  big_.assign(ids.size(), kNone);
  for (std::uint32_t place = 0; place < ids.size(); ++place) {
    const auto begin = static_cast<std::int64_t>(items_.size());
    start_.push_back(begin);
    forest_.for_each_row(ids[place], [&](std::uint32_t row) { items_.push_back(row); });
    const auto end = static_cast<std::int64_t>(items_.size());
    if (end - begin > rows) {
      big_[place] = static_cast<std::uint32_t>(bigs_.size());
      bigs_.push_back(place);
      for (std::int64_t part = begin; part < end; part += rows) {
        blocks_.push_back({part, std::min(part + rows, end), place, place, true});
      }
    } else if (!blocks_.empty() && !blocks_.back().is_partial && end - blocks_.back().begin <= rows) {
      blocks_.back().end = end;
      blocks_.back().last_cluster = place;
    } else {
      blocks_.push_back({begin, end, place, place, false});
    }
  }
  start_.push_back(static_cast<std::int64_t>(items_.size()));
  // What a cluster of several blocks has in common with each other cluster, so far.
  const double none = method_ == Linkage::single ? kInfinity : 0.0;
  partials_.assign(bigs_.size(), std::vector<double>(ids.size(), none));
  partial_mutex_.reset(new std::mutex[bigs_.size() + 1]);
}

void NearPairsPass::pack(const Block& block, GramPanel& panel, std::vector<double>& centroids) const {
  if (!by_centroid_) {
    panel.pack(rows_, items_.data() + block.begin, block.count(), frame_);
    return;
  }
  std::vector<std::uint32_t> index(static_cast<std::size_t>(block.count()));
  std::iota(index.begin(), index.end(), 0u);
  centroids.resize(index.size() * static_cast<std::size_t>(rows_.cols));
  for (const std::uint32_t k : index) {
    sums_->centroid(ids_[items_[static_cast<std::size_t>(block.begin) + k]],
                    centroids.data() + k * static_cast<std::size_t>(rows_.cols));
  }
  panel.pack({centroids.data(), block.count(), rows_.cols, rows_.cols, 1, DType::f64}, index.data(), block.count(),
             frame_);
}

// A pair can only be near if its product is large: d² >= n_i + n_j − 2·dot − margin, where the margin is twice the
// error that gram() states, and a little for the float64 rounding of the norms and of exact distances. With w the
// weight of the squared distance (1, but for Ward) and t the limit, w·d² < t² needs dot > (n_i − margin − t²/w)/2 +
// n_j/2. That sum is made in float32: three roundings, each at most 2^-24 of the larger term, are covered by 2^-22 of
// both.
void NearPairsPass::set_limits(const Block& block_a, const GramPanel& a, const Block& block_b, double limit,
                               Workspace& work) const {
  const GramPanel& b = work.panel;
  double norm_b = 0.0, error_b = 0.0, squared_b = 0.0;
  for (std::int64_t j = 0; j < b.count(); ++j) {
    norm_b = std::max(norm_b, b.norm(j));
    error_b = std::max(error_b, b.error(j));
    squared_b = std::max(squared_b, b.squared_norm(j));
    work.half_b[static_cast<std::size_t>(j)] = static_cast<float>(0.5 * b.squared_norm(j));
  }
  double smallest_b = 1.0;
  if (method_ == Linkage::ward) {
    smallest_b = static_cast<double>(forest_.size(ids_[items_[static_cast<std::size_t>(block_b.begin)]]));
  }
  const double gamma = gram_gamma(rows_.cols);
  const double scaled = limit * frame_.scale;
  const double limit_squared = scaled * scaled * (1.0 + 1e-9);
  work.margin = 0.0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    const double margin =
        2.0 * (a.error(i) * norm_b + a.norm(i) * error_b + gamma * a.norm(i) * norm_b + 1e-30) * (1.0 + 1e-9) +
        1e-12 * (a.squared_norm(i) + squared_b);
    work.margin = std::max(work.margin, margin);
    double weight = 1.0;
    if (method_ == Linkage::ward) {
      const auto size = static_cast<double>(forest_.size(ids_[items_[static_cast<std::size_t>(block_a.begin + i)]]));
      weight = 2.0 * size * smallest_b / (size + smallest_b);
    }
    const double lower = 0.5 * (a.squared_norm(i) - margin);
    const double threshold = lower - 0.5 * limit_squared / weight;
    const double slack = 0x1p-22;
    work.lower_a[static_cast<std::size_t>(i)] = static_cast<float>(lower - slack * (std::abs(lower) + 0.5 * squared_b));
    work.limit_a[static_cast<std::size_t>(i)] =
        static_cast<float>(threshold - slack * (std::abs(threshold) + 0.5 * squared_b));
  }
}

void NearPairsPass::run(const std::vector<std::uint32_t>& ids, PairConsumer& sink, Executor& executor, Ticker& ticker) {
  plan_blocks(ids);
  const GramKernels& kernels = gram_kernels();
  const auto blocks = static_cast<std::int64_t>(blocks_.size());
  const std::int64_t super_blocks = std::min(plan_.super_blocks, blocks);
  std::vector<GramPanel> panels;
  std::vector<std::vector<double>> scratch(static_cast<std::size_t>(super_blocks));
  panels.reserve(static_cast<std::size_t>(super_blocks));
  for (std::int64_t k = 0; k < super_blocks; ++k) {
    panels.emplace_back(GramPanel::Side::a, plan_.block_rows, rows_.cols, kernels);
  }
  std::mutex pool_mutex;
  std::vector<std::unique_ptr<Workspace>> pool;
  std::atomic<std::int64_t> done{0};
  const double total = 0.5 * static_cast<double>(blocks) * static_cast<double>(blocks + 1);

  for (std::int64_t first = 0; first < blocks; first += super_blocks) {
    const std::int64_t last = std::min(first + super_blocks, blocks);
    auto pack_a = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) {
        std::vector<double>& centroids = scratch[static_cast<std::size_t>(k)];
        pack(blocks_[static_cast<std::size_t>(first + k)], panels[static_cast<std::size_t>(k)], centroids);
        centroids = {};
      }
    };
    executor.parallel_for(last - first, 1, pack_a);
    auto multiply = [&](std::int64_t begin, std::int64_t end) {
      std::unique_ptr<Workspace> work;
      {
        const std::lock_guard<std::mutex> lock(pool_mutex);
        if (!pool.empty()) {
          work = std::move(pool.back());
          pool.pop_back();
        }
      }
      if (!work)
        work = std::make_unique<Workspace>(plan_.block_rows, rows_.cols, rows_, method_, forest_, sums_, kernels);
      for (std::int64_t index = begin; index < end; ++index) {
        const std::int64_t b = blocks - 1 - index;  // the last ones have the most to do
        const Block& block_b = blocks_[static_cast<std::size_t>(b)];
        pack(block_b, work->panel, work->centroids);
        for (std::int64_t a = first; a < std::min(last, b + 1); ++a) {
          const Block& block_a = blocks_[static_cast<std::size_t>(a)];
          if (block_a.is_partial && block_b.is_partial && block_a.first_cluster == block_b.first_cluster) continue;
          const GramPanel& panel = panels[static_cast<std::size_t>(a - first)];
          gram(panel, work->panel, work->dots.data(), stride());
          reduce(block_a, panel, block_b, a == b, *work, sink);
          ticker.tick(static_cast<double>(done.fetch_add(1) + 1) / total);
        }
        sink.take(work->found);
        work->found.clear();
      }
      const std::lock_guard<std::mutex> lock(pool_mutex);
      pool.push_back(std::move(work));
    };
    executor.parallel_for(blocks - first, 1, multiply);
    ticker.tick(static_cast<double>(done.load()) / total);
  }
  emit_partials(sink);
}

void NearPairsPass::reduce(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same,
                           Workspace& work, PairConsumer& sink) {
  const double limit = sink.limit();
  set_limits(block_a, a, block_b, limit, work);
  work.centroid_of = -1;
  const auto is_single = [](const Block& block) {
    return !block.is_partial && block.count() == block.last_cluster - block.first_cluster + 1;
  };
  if (by_centroid_ || (is_single(block_a) && is_single(block_b))) {
    reduce_items(block_a, block_b, is_same, work, limit);
  } else {
    reduce_groups(block_a, a, block_b, is_same, work, limit);
  }
  if (work.found.size() >= kBatch) {
    sink.take(work.found);
    work.found.clear();
  }
}

void NearPairsPass::reduce_items(const Block& block_a, const Block& block_b, bool is_same, Workspace& work,
                                 double limit) const {
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
        if (dots[j] > limit_a + half_b[j]) add_item_pair(block_a.begin + i, block_b.begin + j, j, work, limit);
      }
    }
  }
}

void NearPairsPass::add_item_pair(std::int64_t item_a, std::int64_t item_b, std::int64_t column, Workspace& work,
                                  double limit) const {
  std::uint32_t a, b;  // places
  if (by_centroid_) {
    a = items_[static_cast<std::size_t>(item_a)];
    b = items_[static_cast<std::size_t>(item_b)];
  } else {
    // Every cluster of the block has one row: its place counts as the items do.
    const auto place_of = [&](std::int64_t item) {
      return static_cast<std::uint32_t>(std::upper_bound(start_.begin(), start_.end(), item) - start_.begin() - 1);
    };
    a = place_of(item_a);
    b = place_of(item_b);
  }
  const std::uint32_t id_a = ids_[a], id_b = ids_[b];
  double distance;
  bool is_bound = false;
  if (forest_.is_row(id_a) && forest_.is_row(id_b)) {
    distance = std::sqrt(squared_distance(rows_, id_a, id_b));
  } else {
    if (work.centroid_of != item_a) {
      work.centroid.resize(static_cast<std::size_t>(rows_.cols));
      sums_->centroid(id_a, work.centroid.data());
      work.centroid_of = item_a;
    }
    distance = work.distance.from_centroids(work.centroid.data(), static_cast<double>(forest_.size(id_a)),
                                            work.centroids.data() + column * rows_.cols,
                                            static_cast<double>(forest_.size(id_b))) *
               (1.0 - 1e-9);
    is_bound = true;
  }
  if (distance < limit) {
    work.found.push_back({distance, std::min(a, b) & 0x7fffffffu, is_bound, std::max(a, b)});
  }
}

void NearPairsPass::reduce_groups(const Block& block_a, const GramPanel& a, const Block& block_b, bool is_same,
                                  Workspace& work, double limit) {
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
          if (size == 1.0 && value < limit) {
            value = extreme(a, block_a, i0, i1, block_b, j0, j1, work);
            is_bound = false;
          }
        }
      } else {
        float best = folded[j0];
        for (std::int64_t j = j0 + 1; j < j1; ++j) {
          best = method_ == Linkage::complete ? std::min(best, folded[j]) : std::max(best, folded[j]);
        }
        value = best > 0.0f ? extreme(a, block_a, i0, i1, block_b, j0, j1, work) : kInfinity;
      }
      if (is_partial) {
        add_partial(c, e, value);
      } else if (value < limit) {
        work.found.push_back({value, std::min(c, e) & 0x7fffffffu, is_bound, std::max(c, e)});
      }
    }
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
    }
    partials_[big] = {};
  }
  sink.take(found);
}

}  // namespace stun_ext::detail
