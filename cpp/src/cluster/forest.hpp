// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "stun_ext/cluster.hpp"

namespace stun_ext::detail {

/// The clusters of n rows while they are being merged, in SciPy's numbering: 0 … n−1 are the rows, n + i is what merge
/// i made. Each knows its rows, so that distances between clusters can be computed from rows whenever they are needed.
class Forest {
 public:
  explicit Forest(std::int64_t n);

  /// Bytes it takes for n rows, the merges aside.
  static double bytes(std::int64_t n) noexcept { return 20.0 * static_cast<double>(n); }

  std::int64_t num_rows() const noexcept { return static_cast<std::int64_t>(next_.size()); }
  std::int64_t num_clusters() const noexcept { return num_rows() - static_cast<std::int64_t>(merges_.size()); }

  /// Merges two clusters, `first` the lower id; returns the new one's id.
  std::uint32_t merge(std::uint32_t first, std::uint32_t second, double height);

  bool is_row(std::uint32_t id) const noexcept { return id < next_.size(); }
  const Merge& merge_of(std::uint32_t id) const noexcept { return merges_[id - next_.size()]; }
  std::int64_t size(std::uint32_t id) const noexcept {
    return is_row(id) ? 1 : static_cast<std::int64_t>(merge_of(id).size);
  }

  /// Calls function(row) for each row of a cluster, in an order that depends on the merges alone.
  template <class Function>
  void for_each_row(std::uint32_t id, Function&& function) const {
    std::int64_t left = size(id);
    for (std::uint32_t row = head_[id]; left > 0; row = next_[row], --left) function(row);
  }

  /// The first row that for_each_row visits.
  std::uint32_t first_row(std::uint32_t id) const noexcept { return head_[id]; }

  std::vector<Merge> take_merges() noexcept { return std::move(merges_); }

 private:
  std::vector<Merge> merges_;
  std::vector<std::uint32_t> next_;  ///< the row after this one in its cluster
  std::vector<std::uint32_t> head_;  ///< first row of a cluster, by id
  std::vector<std::uint32_t> tail_;
};

}  // namespace stun_ext::detail
