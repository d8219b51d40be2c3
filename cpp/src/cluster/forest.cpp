// SPDX-License-Identifier: Apache-2.0
#include "cluster/forest.hpp"

#include <numeric>

namespace stun_ext::detail {

Forest::Forest(std::int64_t n) : next_(static_cast<std::size_t>(n)) {
  merges_.reserve(static_cast<std::size_t>(n - 1));
  head_.resize(static_cast<std::size_t>(2 * n - 1));
  tail_.resize(head_.size());
  std::iota(head_.begin(), head_.begin() + n, 0u);
  std::iota(tail_.begin(), tail_.begin() + n, 0u);
}

std::uint32_t Forest::merge(std::uint32_t first, std::uint32_t second, double height) {
  const auto id = static_cast<std::uint32_t>(next_.size() + merges_.size());
  const auto size = static_cast<double>(this->size(first) + this->size(second));
  merges_.push_back({static_cast<double>(first), static_cast<double>(second), height, size});
  next_[tail_[first]] = head_[second];
  head_[id] = head_[first];
  tail_[id] = tail_[second];
  return id;
}

}  // namespace stun_ext::detail
