// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/allocation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "cluster/star.hpp"

namespace stun_ext {
namespace {

constexpr const char* kOperation = "allocate_experts";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_arguments(Span<const ConstMatrixView> distances, std::int64_t total, std::int64_t min_experts,
                     std::int64_t n_group) {
  if (distances.empty()) detail::fail(kOperation, "distances must hold at least one layer, got none");
  if (n_group < 1) detail::fail(kOperation, "n_group must be at least 1, got ", n_group);
  std::int64_t experts = 0;
  for (std::size_t layer = 0; layer < distances.size(); ++layer) {
    try {
      detail::check_star_distances(kOperation, distances[layer]);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(error.what()) + " (layer " + std::to_string(layer) + ")");
    }
    const std::int64_t n = distances[layer].rows;
    if (n % n_group != 0) {
      detail::fail(kOperation, "n_group must divide the experts of every layer, got ", n_group, " for the ", n,
                   " experts of layer ", layer);
    }
    if (min_experts < 1 || min_experts > n) {
      detail::fail(kOperation, "min_experts must be in [1, ", n, "] for layer ", layer, ", got ", min_experts);
    }
    experts += n;
  }
  if (min_experts % n_group != 0) {
    detail::fail(kOperation, "min_experts must be a multiple of n_group = ", n_group, ", got ", min_experts);
  }
  const std::int64_t minimum = min_experts * static_cast<std::int64_t>(distances.size());
  if (total < minimum || total > experts) {
    detail::fail(kOperation, "total must be in [", minimum, ", ", experts, "], got ", total);
  }
}

/// A routing group of a layer (all of the layer without groups), and its clusters as a function of the threshold.
struct Unit {
  std::size_t layer;
  std::unique_ptr<detail::StarProblem> problem;
  std::vector<std::size_t> component_ranks;

  /// Where the clusters change in the window: from `above` on (exclusive) the rule leaves n_clusters, until the next.
  struct Step {
    double above;
    std::int64_t n_clusters;
  };
  std::vector<Step> steps;

  /// Clusters that no threshold up to the given one can go below.
  std::int64_t fewest_clusters(double threshold, std::int64_t minimum) const {
    const std::size_t pairs = problem->pairs_below(threshold);
    const auto joined = std::lower_bound(component_ranks.begin(), component_ranks.end(), pairs);
    return std::max(minimum, problem->num_experts() - (joined - component_ranks.begin()));
  }

  /// Fills `steps` for the thresholds in (from, to], from the top down: each run tells how far down it holds.
  void evaluate(double from, double to, std::int64_t minimum) {
    steps.clear();
    const std::size_t lowest = problem->pairs_below(std::nextafter(from, kInfinity));
    std::size_t pairs = problem->pairs_below(to);
    for (;;) {
      const detail::StarResult result = problem->run(pairs, minimum);
      const bool is_last = result.valid_from <= lowest;
      steps.push_back({is_last ? from : problem->sorted()[result.valid_from - 1], result.n_clusters});
      if (is_last) break;
      pairs = problem->pairs_below(problem->sorted()[result.valid_from - 1]);
    }
    std::reverse(steps.begin(), steps.end());
  }
};

class Search {
 public:
  Search(Span<const ConstMatrixView> distances, std::int64_t total, std::int64_t min_experts, std::int64_t n_group,
         Executor& executor)
      : layers_(distances.size()),
        n_group_(n_group),
        minimum_(min_experts / n_group),
        total_(total),
        executor_(executor) {
    std::int64_t experts = 0;
    for (std::size_t layer = 0; layer < layers_; ++layer) experts += distances[layer].rows;
    // Reachable totals are multiples of n_group; the nearest of these, the larger of two equally near.
    goal_ = (total + n_group / 2) / n_group * n_group;
    goal_ = std::min(goal_, experts);
    units_.resize(layers_ * static_cast<std::size_t>(n_group));
    auto sort = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t index = begin; index < end; ++index) {
        Unit& unit = units_[static_cast<std::size_t>(index)];
        unit.layer = static_cast<std::size_t>(index / n_group);
        const std::int64_t size = distances[unit.layer].rows / n_group;
        unit.problem = std::make_unique<detail::StarProblem>(distances[unit.layer], index % n_group * size, size);
        unit.component_ranks = unit.problem->component_ranks();
      }
    };
    executor.parallel_for(static_cast<std::int64_t>(units_.size()), 1, sort);
    for (const Unit& unit : units_) {
      thresholds_.insert(thresholds_.end(), unit.problem->sorted().begin(), unit.problem->sorted().end());
    }
    std::sort(thresholds_.begin(), thresholds_.end());
    thresholds_.erase(std::unique(thresholds_.begin(), thresholds_.end()), thresholds_.end());
    thresholds_.push_back(kInfinity);
  }

  Allocation run() {
    // Below this place the components alone leave more than the goal, so the goal is looked for from here up.
    const auto start = static_cast<std::size_t>(
        std::partition_point(thresholds_.begin(), thresholds_.end(),
                             [&](double threshold) { return fewest_experts(threshold) > goal_; }) -
        thresholds_.begin());
    // Windows that grow: the goal is mostly met soon, and what lies above it is then never clustered.
    std::size_t window = 256;
    for (std::size_t place = start; place < thresholds_.size() && best_.reached_total != goal_; window *= 2) {
      const std::size_t end = std::min(place + window, thresholds_.size());
      search_window(place, end);
      place = end;
    }
    // Never met: the nearest may still lie below the start, where every total is above the goal.
    for (std::size_t place = start; place > 0 && best_.reached_total != goal_;) {
      const std::size_t begin = place > 256 ? place - 256 : 0;
      if (best_.reached_total >= 0 &&
          fewest_experts(thresholds_[place - 1]) - total_ > distance_of(best_.reached_total)) {
        break;  // further down they are further away still
      }
      search_window(begin, place);
      place = begin;
    }
    best_.requested_total = total_;
    return best_;
  }

 private:
  std::int64_t distance_of(std::int64_t total) const noexcept {
    return total > total_ ? total - total_ : total_ - total;
  }

  std::int64_t fewest_experts(double threshold) const {
    std::int64_t sum = 0;
    for (std::size_t unit = 0; unit < units_.size(); unit += static_cast<std::size_t>(n_group_)) {
      std::int64_t most = 0;
      for (std::size_t group = 0; group < static_cast<std::size_t>(n_group_); ++group) {
        most = std::max(most, units_[unit + group].fewest_clusters(threshold, minimum_));
      }
      sum += n_group_ * most;
    }
    return sum;
  }

  std::int64_t experts_of_layer(std::size_t layer, const std::vector<std::int64_t>& clusters) const noexcept {
    const auto groups = static_cast<std::size_t>(n_group_);
    const auto first = clusters.begin() + static_cast<std::ptrdiff_t>(layer * groups);
    return n_group_ * *std::max_element(first, first + n_group_);
  }

  /// Looks at every threshold in [begin, end) of thresholds_, in ascending order, until the goal is met.
  void search_window(std::size_t begin, std::size_t end) {
    const double from = begin == 0 ? -kInfinity : thresholds_[begin - 1];
    const double to = thresholds_[end - 1];
    auto evaluate = [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t unit = first; unit < last; ++unit) {
        units_[static_cast<std::size_t>(unit)].evaluate(from, to, minimum_);
      }
    };
    executor_.parallel_for(static_cast<std::int64_t>(units_.size()), 1, evaluate);

    struct Change {
      double above;
      std::size_t unit;
      std::int64_t n_clusters;
    };
    std::vector<Change> changes;
    std::vector<std::int64_t> clusters(units_.size());
    for (std::size_t unit = 0; unit < units_.size(); ++unit) {
      const std::vector<Unit::Step>& steps = units_[unit].steps;
      clusters[unit] = steps.front().n_clusters;
      for (std::size_t step = 1; step < steps.size(); ++step) {
        changes.push_back({steps[step].above, unit, steps[step].n_clusters});
      }
    }
    std::stable_sort(changes.begin(), changes.end(),
                     [](const Change& a, const Change& b) { return a.above < b.above; });

    std::vector<std::int64_t> counts(layers_);
    std::int64_t sum = 0;
    for (std::size_t layer = 0; layer < layers_; ++layer) sum += counts[layer] = experts_of_layer(layer, clusters);
    consider(thresholds_[begin], sum, counts);
    for (std::size_t change = 0; change < changes.size() && best_.reached_total != goal_;) {
      const double above = changes[change].above;
      for (; change < changes.size() && changes[change].above == above; ++change) {
        const std::size_t layer = units_[changes[change].unit].layer;
        clusters[changes[change].unit] = changes[change].n_clusters;
        sum -= counts[layer];
        sum += counts[layer] = experts_of_layer(layer, clusters);
      }
      consider(*std::upper_bound(thresholds_.begin(), thresholds_.end(), above), sum, counts);
    }
  }

  /// Of equally near totals the larger, of equal totals the lower threshold.
  void consider(double threshold, std::int64_t sum, const std::vector<std::int64_t>& counts) {
    const std::int64_t distance = distance_of(sum);
    const std::int64_t best = distance_of(best_.reached_total);
    const bool is_better = best_.reached_total < 0 || distance < best ||
                           (distance == best &&
                            (sum > best_.reached_total || (sum == best_.reached_total && threshold < best_.threshold)));
    if (is_better) best_ = {threshold, counts, total_, sum};
  }

  std::size_t layers_;
  std::int64_t n_group_;
  std::int64_t minimum_;  ///< per group
  std::int64_t total_;
  std::int64_t goal_;
  Executor& executor_;
  std::vector<Unit> units_;         ///< groups of layer 0, of layer 1, …
  std::vector<double> thresholds_;  ///< all pair distances, ascending, each once, and +Inf
  Allocation best_{kInfinity, {}, 0, -1};
};

}  // namespace

Allocation allocate_experts(Span<const ConstMatrixView> distances, std::int64_t total, std::int64_t min_experts,
                            std::int64_t n_group, Executor& executor) {
  check_arguments(distances, total, min_experts, n_group);
  return Search(distances, total, min_experts, n_group, executor).run();
}

}  // namespace stun_ext
