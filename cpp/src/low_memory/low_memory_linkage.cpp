// SPDX-License-Identifier: Apache-2.0
#include "low_memory/low_memory_linkage.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "check.hpp"
#include "low_memory/cluster_matrix.hpp"
#include "low_memory/near_pairs.hpp"
#include "low_memory/single_linkage.hpp"
#include "low_memory/sparse_agglomeration.hpp"

namespace stun_ext::detail {
namespace {

constexpr const char* kOperation = "linkage";
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kBytesPerPair = PairStore::kBytesPerPair + SparseAgglomeration::kBytesPerPair;
constexpr double kBytesPerRow = 200.0;  // the forest, the clusters' places and lists, blocks of items, norms
constexpr double kBytesAtLeast = 65536.0;
constexpr std::int64_t kMatrixBlock = 256;  // rows

std::int64_t matrix_block(std::int64_t block_rows) noexcept { return std::min(block_rows / 2, kMatrixBlock); }

bool is_by_centroid(Linkage method) noexcept { return method == Linkage::ward || method == Linkage::centroid; }

/// Fills a matrix with all pairs of a pass.
class MatrixConsumer final : public PairConsumer {
 public:
  explicit MatrixConsumer(ClusterDistances& distances) : distances_(distances) {}
  double limit() const noexcept override { return kInfinity; }
  void take(const std::vector<NearPair>& pairs) override {
    for (const NearPair& pair : pairs) distances_.set(pair.low, pair.high, pair.distance);
  }

 private:
  ClusterDistances& distances_;
};

/// Numbers that are the same on every machine (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) noexcept {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

class Rounds {
 public:
  Rounds(const ConstMatrixView& rows, Linkage method, const MemoryPlan& plan, Stop stop, Executor& executor,
         Ticker& ticker)
      : rows_(rows),
        method_(method),
        plan_(plan),
        stop_(stop),
        executor_(executor),
        ticker_(ticker),
        frame_(frame_of(kOperation, rows, executor)),
        forest_(rows.rows) {
    if (is_by_centroid(method)) sums_ = std::make_unique<CentroidSums>(rows, forest_, plan.sums);
    distance_ = std::make_unique<ClusterDistance>(rows, method, forest_, sums_.get());
    while (enough_ < rows.rows && ClusterDistances::bytes(enough_ + 1) <= plan.matrix) ++enough_;
    // Centroid: as much is for what clusters learn.
    capacity_ = method == Linkage::centroid ? (plan.pairs + 1) / 2 : plan.pairs;
    ids_.resize(static_cast<std::size_t>(rows.rows));
    for (std::size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<std::uint32_t>(i);
  }

  std::vector<Merge> run() {
    const double n = static_cast<double>(rows_.rows);
    bool is_stopped = count() <= stop_.n_clusters;
    while (!is_stopped) {
      // Progress by clusters: an estimate, since a pass costs the same for many merges as for few.
      const double done = 1.0 - static_cast<double>(count()) / n;
      ticker_.set_span(done, done + 0.5 * (1.0 - done));
      if (count() <= enough_) {
        finish();
        break;
      }
      is_stopped = round();
    }
    return forest_.take_merges();
  }

 private:
  std::int64_t count() const noexcept { return static_cast<std::int64_t>(ids_.size()); }
  PassPlan pass_plan() const noexcept { return {plan_.block_rows, plan_.super_blocks}; }

  /// Returns whether `stop_` has been reached.
  bool round() {
    const double last = std::nextafter(stop_.height, kInfinity);  // what is below it is at most the height
    const double chosen = sample_limit();
    const bool is_last = chosen >= last;
    std::vector<NearPair> pairs;
    double limit;
    bool overflowed;
    {
      PairStore store(capacity_, std::min(chosen, last));
      NearPairsPass(rows_, frame_, method_, forest_, sums_.get(), pass_plan()).run(ids_, store, executor_, ticker_);
      pairs = store.finish(executor_);
      limit = store.limit();
      overflowed = store.overflowed();
    }
    if (overflowed && pairs.empty()) {
      fail(kOperation, "memory_limit must hold all pairs that tie for the smallest distance, ", limit, ": more than ",
           capacity_);
    }
    const double fill = static_cast<double>(pairs.size()) / static_cast<double>(capacity_);
    if (overflowed) {
      aim_ = std::max(0.25, aim_ * 0.8);
    } else if (is_for_stop_) {
      pairs_per_merge_ *= 4.0;  // if there is another round, they were too few
    } else if (fill < 0.5) {
      aim_ *= std::min(8.0, 0.8 / std::max(fill, 1e-3));
    }
    const std::int64_t before = count();
    bool is_stopped, is_early = false;
    if (method_ == Linkage::single) {
      is_stopped = merge_single(pairs, ids_, stop_, forest_);
    } else {
      SparseAgglomeration agglomeration(std::move(pairs), limit, ids_, rows_, method_, forest_, sums_.get(),
                                        plan_.pairs, executor_);
      // Average: what is large costs many distances between rows, which all at once cost less.
      const auto end = agglomeration.run(stop_, method_ == Linkage::average ? enough_ : 0, ticker_);
      is_stopped = end == SparseAgglomeration::End::stop;
      is_early = end == SparseAgglomeration::End::early;
      ids_ = agglomeration.remaining();
    }
    if (count() == before && overflowed) {
      fail(kOperation, "memory_limit must hold more than ", capacity_, " pairs: so many may be the nearest at ", limit);
    }
    // All pairs up to the height were known. Centroid distances may have fallen below it since: then one more round.
    return is_stopped || (is_last && !overflowed && !is_early && (method_ != Linkage::centroid || count() == before));
  }

  /// A limit below which about as many pairs of clusters are as there is room for, or, if fewer, as the merges that are
  /// still wanted will take: under a low limit a pass leaves out most of its products. From a sample of pairs.
  double sample_limit() {
    const auto m = static_cast<std::uint64_t>(count());
    const double pairs = 0.5 * static_cast<double>(m) * static_cast<double>(m - 1);
    const double room = aim_ * static_cast<double>(capacity_);
    const double wanted = pairs_per_merge_ * static_cast<double>(count() - stop_.n_clusters);
    is_for_stop_ = stop_.n_clusters > 1 && wanted < room;
    const double share = std::min(1.0, std::min(room, is_for_stop_ ? wanted : room) / pairs);
    if (share >= 1.0) return kInfinity;
    // Of single rows they are cheap, and find what is rare; they take the place of the pairs, which come after.
    const std::size_t most = count() == rows_.rows ? std::min<std::size_t>(capacity_, 65536) : 0;
    const std::size_t n_samples = std::max<std::size_t>(most, 8192);
    Random random(m);
    std::vector<double> sample;
    sample.reserve(n_samples);
    for (std::size_t k = 0; k < n_samples; ++k) {
      const std::uint64_t a = random.below(m);
      const std::uint64_t b = random.below(m - 1);
      sample.push_back(sample_distance(ids_[a], ids_[b + (b >= a)], random));
    }
    const auto place = static_cast<std::ptrdiff_t>(std::max(2.0, share * static_cast<double>(n_samples)));
    std::nth_element(sample.begin(), sample.begin() + place, sample.end());
    return sample[static_cast<std::size_t>(place)];
  }

  double sample_distance(std::uint32_t a, std::uint32_t b, Random& random) {
    if (is_by_centroid(method_)) {
      centroids_.resize(static_cast<std::size_t>(2 * rows_.cols));
      sums_->centroid(a, centroids_.data());
      sums_->centroid(b, centroids_.data() + rows_.cols);
      return distance_->from_centroids(centroids_.data(), static_cast<double>(forest_.size(a)),
                                       centroids_.data() + rows_.cols, static_cast<double>(forest_.size(b)));
    }
    constexpr std::int64_t kMost = 16;  // of the pairs of rows: enough to aim by
    std::vector<std::uint32_t> of_a, of_b;
    forest_.for_each_row(a, [&](std::uint32_t row) { of_a.push_back(row); });
    forest_.for_each_row(b, [&](std::uint32_t row) { of_b.push_back(row); });
    const auto size = static_cast<std::int64_t>(of_a.size() * of_b.size());
    const std::int64_t tries = std::min(size, kMost);
    double low = kInfinity, high = 0.0, sum = 0.0;
    for (std::int64_t k = 0; k < tries; ++k) {
      const auto pair = size <= kMost ? static_cast<std::uint64_t>(k) : random.below(static_cast<std::uint64_t>(size));
      const double d = std::sqrt(squared_distance(rows_, of_a[pair / of_b.size()], of_b[pair % of_b.size()]));
      low = std::min(low, d);
      high = std::max(high, d);
      sum += d;
    }
    return method_ == Linkage::single ? low : method_ == Linkage::complete ? high : sum / static_cast<double>(tries);
  }

  /// All distances of the clusters that are left, and the rest of the merges.
  void finish() {
    ClusterDistances distances(count());
    if (method_ == Linkage::single || method_ == Linkage::complete) {
      MatrixConsumer consumer(distances);
      NearPairsPass(rows_, frame_, method_, forest_, sums_.get(), pass_plan()).run(ids_, consumer, executor_, ticker_);
    } else {
      average_distances(rows_, forest_, ids_, matrix_block(plan_.block_rows), distances, executor_, ticker_);
    }
    Clusters clusters;
    clusters.next_id = rows_.rows + rows_.rows - count();
    for (const std::uint32_t id : ids_) {
      clusters.id.push_back(id);
      clusters.size.push_back(static_cast<double>(forest_.size(id)));
    }
    for (const Merge& merge :
         agglomerate(std::move(distances), std::move(clusters), method_, stop_, executor_, ticker_)) {
      forest_.merge(static_cast<std::uint32_t>(merge.first), static_cast<std::uint32_t>(merge.second), merge.height);
    }
  }

  const ConstMatrixView& rows_;
  Linkage method_;
  MemoryPlan plan_;
  Stop stop_;
  Executor& executor_;
  Ticker& ticker_;
  GramFrame frame_;
  Forest forest_;
  std::unique_ptr<CentroidSums> sums_;
  std::unique_ptr<ClusterDistance> distance_;
  std::vector<std::uint32_t> ids_;
  std::vector<double> centroids_;
  std::int64_t enough_ = 0;        ///< clusters, all of whose distances there is room for
  std::size_t capacity_ = 0;       ///< pairs that a pass may find
  double aim_ = 0.8;               ///< of the room for pairs, the part that a limit is chosen for
  double pairs_per_merge_ = 16.0;  ///< how many pairs a limit is chosen for, where few merges are wanted
  bool is_for_stop_ = false;       ///< whether the last limit was
};

double fixed_bytes(std::int64_t n, std::int64_t d) noexcept {
  return kBytesAtLeast + kBytesPerRow * static_cast<double>(n) + 64.0 * static_cast<double>(d);
}

/// What a pass takes or the merges after it, one after the other, beside the pairs. A pass keeps one block more for
/// each of the super blocks.
double work_bytes(std::int64_t n, std::int64_t d, std::int64_t block_rows, std::int64_t super_blocks, Linkage method,
                  int threads) noexcept {
  double merging = ClusterDistance::bytes(n, d, method);
  if (method == Linkage::average) merging = average_distances_bytes(n, d, matrix_block(block_rows));
  return std::max(NearPairsPass::bytes(d, method, {block_rows, super_blocks}, threads), merging * threads);
}

constexpr std::int64_t kLeastRows = 16;
constexpr double kLeastPairs = 1024.0;
constexpr double kMostPairs = 2147483647.0;  // as they are counted

}  // namespace

MemoryPlan MemoryPlan::of(const char* operation, std::int64_t asked, double usual, const ConstMatrixView& rows,
                          Linkage method, int threads) {
  check_rows_shape(operation, rows);
  const std::int64_t n = rows.rows, d = rows.cols;
  if (n > std::int64_t{1} << 30) fail(operation, "rows must be at most 2^30 in number, got ", n);
  MemoryPlan plan;
  const double least =
      fixed_bytes(n, d) + work_bytes(n, d, kLeastRows, 1, method, threads) + kLeastPairs * kBytesPerPair;
  const double limit = asked > 0 ? static_cast<double>(asked) : std::max(usual, least);
  if (limit < least) {
    fail(operation, "memory_limit must be at least ", static_cast<std::int64_t>(std::ceil(least)), " bytes for ", n,
         " rows of ", d, " columns, got ", asked, " (fewer threads need less: ", threads, " now)");
  }
  const double free = limit - fixed_bytes(n, d);
  plan.block_rows = kLeastRows;
  for (std::int64_t block = 512; block > kLeastRows; block /= 2) {
    if (n <= block / 2) continue;  // smaller ones hold all rows, too
    if (NearPairsPass::bytes(d, method, {block, 1}, threads) > 0.3 * free) continue;
    if (work_bytes(n, d, block, 1, method, threads) > free - kLeastPairs * kBytesPerPair) continue;
    plan.block_rows = block;
    break;
  }
  const double left = free - NearPairsPass::bytes(d, method, {plan.block_rows, 1}, threads);
  const double panel = GramPanel::bytes(plan.block_rows, d);
  const auto blocks = static_cast<double>(n / plan.block_rows);
  plan.super_blocks = 1 + static_cast<std::int64_t>(std::min(0.25 * left / panel, blocks));
  const double beside = free - work_bytes(n, d, plan.block_rows, plan.super_blocks, method, threads);
  plan.sums = is_by_centroid(method) ? 0.4 * beside : 0.0;
  const double rest = beside - plan.sums;
  const double all = 0.5 * static_cast<double>(n) * static_cast<double>(n - 1) + 2.0;
  plan.pairs = static_cast<std::size_t>(std::min({rest / kBytesPerPair, all, kMostPairs}));
  // Exact distances by Ward and centroid cost more than bounds that few of which are ever looked at: pairs to the end.
  plan.matrix = is_by_centroid(method) ? 0.0 : rest;
  return plan;
}

void check_memory_limit(const char* operation, std::int64_t memory_limit) {
  if (memory_limit < 0) fail(operation, "memory_limit must not be negative, got ", memory_limit);
}

GramFrame frame_of(const char* operation, const ConstMatrixView& rows, Executor& executor) {
  GramFrame frame = GramFrame::of(rows, executor);
  constexpr double kFarthest = 1e150;
  if (!(2.0 * frame.radius <= kFarthest)) {
    fail(operation, "distances must be at most ", kFarthest, " without a matrix of them, but rows may be ",
         2.0 * frame.radius, " apart");
  }
  return frame;
}

std::vector<Merge> low_memory_linkage(const ConstMatrixView& rows, Linkage method, const MemoryPlan& plan, Stop stop,
                                      Executor& executor, Ticker& ticker) {
  return Rounds(rows, method, plan, stop, executor, ticker).run();
}

}  // namespace stun_ext::detail
