// SPDX-License-Identifier: Apache-2.0
#include "low_memory/near_pairs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "check.hpp"

namespace stun_ext::detail {
namespace {

constexpr std::int64_t kBlocksAtATime = 2;  // of columns, before it is looked whether they are enough

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

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
  // A pair of clusters has at least one pair of rows.
  constexpr double kBytesOfExact = sizeof(Workspace::Wanted) + sizeof(Workspace::Candidate) + sizeof(RowPair) +
                                   sizeof(std::uint32_t) + sizeof(double) + 3 * sizeof(RowPair) +
                                   sizeof(double);  // pairs that cancel, in a list that grows
  const double exact = by_centroid ? 0.0 : kBytesOfExact * static_cast<double>(exact_at_a_time(plan.block_rows));
  const double a = GramPanel::bytes(plan.block_rows, cols) * static_cast<double>(plan.super_blocks);
  const double b = GramPanel::bytes(plan.block_rows, cols) + 4.0 * r * r + 16.0 * r +
                   sizeof(NearPair) * (static_cast<double>(kPairsAtATime) + r) + exact +
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
  centroids.reserve(static_cast<std::size_t>(plan_.block_rows * rows_.cols));  // once: later blocks may be larger
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
// both. All of it holds for the first columns alone as well.
void NearPairsPass::set_limits(const Block& block_a, const GramPanel& a, const Block& block_b, double limit,
                               std::int64_t columns, Workspace& work) const {
  const GramPanel& b = work.panel;
  double norm_b = 0.0, error_b = 0.0, squared_b = 0.0;
  for (std::int64_t j = 0; j < b.count(); ++j) {
    norm_b = std::max(norm_b, b.norm(j));
    error_b = std::max(error_b, b.error(j));
    squared_b = std::max(squared_b, b.squared_norm(j));
    work.half_b[static_cast<std::size_t>(j)] = static_cast<float>(0.5 * b.squared_norm(j, columns));
  }
  double smallest_b = 1.0;
  if (method_ == Linkage::ward) {
    smallest_b = static_cast<double>(forest_.size(ids_[items_[static_cast<std::size_t>(block_b.begin)]]));
  }
  const double gamma = a.gamma();
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
    const double lower = 0.5 * (a.squared_norm(i, columns) - margin);
    const double threshold = lower - 0.5 * limit_squared / weight;
    const double slack = 0x1p-22;
    work.lower_a[static_cast<std::size_t>(i)] = static_cast<float>(lower - slack * (std::abs(lower) + 0.5 * squared_b));
    work.limit_a[static_cast<std::size_t>(i)] =
        static_cast<float>(threshold - slack * (std::abs(threshold) + 0.5 * squared_b));
  }
}

// Where some columns already put all pairs of a group of rows apart, the others are not multiplied: squared differences
// only add up. Their products become −Inf, which is never near.
void NearPairsPass::multiply(const Block& block_a, const GramPanel& a, const Block& block_b, double limit,
                             Workspace& work) const {
  const GramPanel& b = work.panel;
  const std::int64_t blocks = a.blocks();
  // Average linkage wants bounds of all pairs between larger clusters.
  if (limit == kInfinity || (method_ == Linkage::average && !(is_single(block_a) && is_single(block_b)))) {
    gram(a, b, work.dots.data(), stride());
    return set_limits(block_a, a, block_b, limit, blocks, work);
  }
  const std::int64_t rows_a = a.group_rows(), rows_b = b.group_rows();
  const std::int64_t groups_a = (a.count() + rows_a - 1) / rows_a, groups_b = (b.count() + rows_b - 1) / rows_b;
  work.wanted.assign(static_cast<std::size_t>(groups_a * groups_b), 1);
  const float* half_b = work.half_b.data();
  for (std::int64_t first = 0; first < blocks; first += kBlocksAtATime) {
    const std::int64_t last = std::min(first + kBlocksAtATime, blocks);
    gram(a, b, first, last, work.wanted.data(), work.dots.data(), stride());
    set_limits(block_a, a, block_b, limit, last, work);
    if (last == blocks) return;
    for (std::int64_t group_a = 0; group_a < groups_a; ++group_a) {
      const std::int64_t i0 = group_a * rows_a, i1 = std::min(i0 + rows_a, a.count());
      for (std::int64_t group_b = 0; group_b < groups_b; ++group_b) {
        unsigned char& is_wanted = work.wanted[static_cast<std::size_t>(group_a * groups_b + group_b)];
        if (is_wanted == 0) continue;
        const std::int64_t j0 = group_b * rows_b, j1 = std::min(j0 + rows_b, b.count());
        int near = 0;
        for (std::int64_t i = i0; i < i1 && near == 0; ++i) {
          const float* dots = work.dots.data() + i * stride();
          const float limit_a = work.limit_a[static_cast<std::size_t>(i)];
          for (std::int64_t j = j0; j < j1; ++j) near |= dots[j] > limit_a + half_b[j];
        }
        if (near != 0) continue;
        is_wanted = 0;
        for (std::int64_t i = i0; i < i1; ++i) {
          std::fill(work.dots.data() + i * stride() + j0, work.dots.data() + i * stride() + j1,
                    -std::numeric_limits<float>::infinity());
        }
      }
    }
  }
}

void NearPairsPass::run(const std::vector<std::uint32_t>& ids, PairConsumer& sink, Executor& executor, Ticker& ticker) {
  takes_bounds_ = sink.takes_bounds() && method_ != Linkage::single;
  plan_blocks(ids);
  if (method_ == Linkage::single || method_ == Linkage::complete) {
    const RowSource source(distance_kernels(), rows_);
    norms_.resize(static_cast<std::size_t>(rows_.rows));
    auto task = [&](std::int64_t begin, std::int64_t end) {
      squared_norms(source, begin, nullptr, end - begin, norms_.data() + begin);
    };
    executor.parallel_for(rows_.rows, rows_per_task(rows_.cols), task);
  }
  const GramKernels& kernels = gram_kernels(rows_.cols);
  const auto blocks = static_cast<std::int64_t>(blocks_.size());
  const std::int64_t super_blocks = std::min(plan_.super_blocks, blocks);
  std::vector<GramPanel> panels;
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
      std::vector<double> centroids;
      for (std::int64_t k = begin; k < end; ++k) {
        pack(blocks_[static_cast<std::size_t>(first + k)], panels[static_cast<std::size_t>(k)], centroids);
      }
    };
    executor.parallel_for(last - first, 1, pack_a);
    auto pairs_of_b = [&](std::int64_t begin, std::int64_t end) {
      std::unique_ptr<Workspace> work;
      {
        const std::lock_guard<std::mutex> lock(pool_mutex);
        if (!pool.empty()) {
          work = std::move(pool.back());
          pool.pop_back();
        }
      }
      if (!work) {
        work = std::make_unique<Workspace>(plan_.block_rows, rows_.cols, kernels);
        if (!norms_.empty()) work->reserve_exact(exact_at_a_time(plan_.block_rows));
      }
      for (std::int64_t index = begin; index < end; ++index) {
        const std::int64_t b = blocks - 1 - index;  // the last ones have the most to do
        const Block& block_b = blocks_[static_cast<std::size_t>(b)];
        pack(block_b, work->panel, work->centroids);
        for (std::int64_t a = first; a < std::min(last, b + 1); ++a) {
          const Block& block_a = blocks_[static_cast<std::size_t>(a)];
          if (block_a.is_partial && block_b.is_partial && block_a.first_cluster == block_b.first_cluster) continue;
          const GramPanel& panel = panels[static_cast<std::size_t>(a - first)];
          const double limit = sink.limit();
          multiply(block_a, panel, block_b, limit, *work);
          reduce(block_a, panel, block_b, a == b, limit, *work, sink);
          ticker.tick(static_cast<double>(done.fetch_add(1) + 1) / total);
        }
        sink.take(work->found);
        work->found.clear();
      }
      const std::lock_guard<std::mutex> lock(pool_mutex);
      pool.push_back(std::move(work));
    };
    executor.parallel_for(blocks - first, 1, pairs_of_b);
    pool.clear();  // packing takes as much
    ticker.tick(static_cast<double>(done.load()) / total);
  }
  emit_partials(sink);
}

}  // namespace stun_ext::detail
