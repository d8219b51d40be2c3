// SPDX-License-Identifier: Apache-2.0
#include "low_memory/cluster_matrix.hpp"

#include <atomic>
#include <cmath>

#include "distance/distance.hpp"
#include "low_memory/cluster_distance.hpp"

namespace stun_ext::detail {
namespace {

/// Consecutive clusters with few enough rows to be one side of a block; or one cluster with more.
struct Group {
  std::uint32_t first, last;  ///< places; last included
  std::int64_t rows;
};

std::vector<Group> groups_of(const Forest& forest, const std::vector<std::uint32_t>& ids, std::int64_t most) {
  std::vector<Group> groups;
  for (std::uint32_t place = 0; place < ids.size(); ++place) {
    const std::int64_t size = forest.size(ids[place]);
    if (!groups.empty() && groups.back().rows + size <= most) {
      groups.back().last = place;
      groups.back().rows += size;
    } else {
      groups.push_back({place, place, size});
    }
  }
  return groups;
}

/// One side of a block: the histories of its clusters, and their rows one after the other.
struct Side {
  std::vector<ClusterHistory> histories;
  std::vector<std::uint32_t> rows;
  std::vector<std::size_t> begin;  ///< of a cluster's rows

  void read(const Forest& forest, const std::vector<std::uint32_t>& ids, const Group& group) {
    const std::size_t count = group.last - group.first + 1;
    if (histories.size() < count) histories.resize(count);
    rows.clear();
    begin.clear();
    for (std::size_t k = 0; k < count; ++k) {
      histories[k].read(forest, ids[group.first + k]);
      begin.push_back(rows.size());
      rows.insert(rows.end(), histories[k].rows().begin(), histories[k].rows().end());
    }
  }
};

}  // namespace

double average_distances_bytes(std::int64_t n, std::int64_t d, std::int64_t rows_of_block) noexcept {
  return ClusterDistance::bytes(n, d, Linkage::average) + SquaredDistanceBlock::bytes(d, 2 * rows_of_block) +
         8.0 * static_cast<double>(rows_of_block * rows_of_block);
}

void average_distances(const ConstMatrixView& rows, const Forest& forest, const std::vector<std::uint32_t>& ids,
                       std::int64_t rows_of_block, ClusterDistances& out, Executor& executor, Ticker& ticker) {
  const std::vector<Group> groups = groups_of(forest, ids, rows_of_block);
  const auto count = static_cast<std::int64_t>(groups.size());
  std::atomic<std::int64_t> done{0};
  const double total = 0.5 * static_cast<double>(count) * static_cast<double>(count + 1);
  auto task = [&](std::int64_t begin, std::int64_t end) {
    ClusterDistance distance(rows, Linkage::average, forest, nullptr);
    SquaredDistanceBlock block(rows.cols);
    Side a, b;
    std::vector<double> matrix;
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t j = count - 1 - index;  // the last ones have the most to do
      const Group& of_b = groups[static_cast<std::size_t>(j)];
      if (of_b.rows <= rows_of_block) b.read(forest, ids, of_b);
      for (std::int64_t i = 0; i <= j; ++i) {
        const Group& of_a = groups[static_cast<std::size_t>(i)];
        if (of_a.rows > rows_of_block || of_b.rows > rows_of_block) {
          for (std::uint32_t p = of_a.first; p <= of_a.last; ++p) {
            for (std::uint32_t q = std::max(p + 1, of_b.first); q <= of_b.last; ++q) {
              out.set(p, q, distance(ids[p], ids[q]));
              ticker.tick(static_cast<double>(done) / total);
            }
          }
        } else {
          a.read(forest, ids, of_a);
          const std::size_t stride = b.rows.size();
          matrix.resize(a.rows.size() * stride);
          block.compute(rows, a.rows.data(), static_cast<std::int64_t>(a.rows.size()), b.rows.data(),
                        static_cast<std::int64_t>(stride), matrix.data());
          for (double& value : matrix) value = std::sqrt(value);
          for (std::uint32_t p = of_a.first; p <= of_a.last; ++p) {
            for (std::uint32_t q = std::max(p + 1, of_b.first); q <= of_b.last; ++q) {
              const std::size_t k = p - of_a.first, l = q - of_b.first;
              out.set(p, q,
                      ClusterHistory::replay(a.histories[k], b.histories[l], Linkage::average,
                                             matrix.data() + a.begin[k] * stride + b.begin[l], stride));
            }
          }
        }
        ticker.tick(static_cast<double>(++done) / total);
      }
    }
  };
  executor.parallel_for(count, 1, task);
}

}  // namespace stun_ext::detail
