// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "distance/distance_panel.hpp"
#include "distance/distance_tile.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/view.hpp"

namespace stun_ext::detail {

/// Shape and dtype of observations [n >= 1, d >= 1], which are not read.
void check_rows_shape(const char* operation, const ConstMatrixView& rows);

/// The same and finiteness.
void check_rows(const char* operation, const ConstMatrixView& rows, Executor& executor);

/// ‖x‖² of rows index[0], index[1], …, or without an index of first, first + 1, …
void squared_norms(const RowSource& source, std::int64_t first, const std::uint32_t* index, std::int64_t count,
                   double* out) noexcept;

/// d² between rows i and j: the bits that AllDistances takes the square root of. Any strides; no allocation.
double squared_distance(const ConstMatrixView& rows, std::int64_t i, std::int64_t j) noexcept;

/// d² between row i and `count` others.
void squared_distances(const ConstMatrixView& rows, std::int64_t i, const std::uint32_t* others, std::int64_t count,
                       double* out) noexcept;

struct RowPair {
  std::int64_t i, j;
};

/// Σ(x − y)² for many pairs at once; those of one row i should follow each other.
void squared_differences(const RowSource& source, const std::vector<RowPair>& pairs, double* out) noexcept;

/// d² of many pairs at once, in the same order.
/// @param norms  ‖x‖² of each row, by row; not read for rows of few columns.
void squared_distances(const RowSource& source, const std::vector<RowPair>& pairs, const double* norms, double* out);

/// Squared distances between two sets of rows, the same bits again. Keeps its workspace.
class SquaredDistanceBlock {
 public:
  explicit SquaredDistanceBlock(std::int64_t cols) : cols_(cols) {}

  /// Bytes that the workspace takes, the norms of up to `rows` rows among it.
  static double bytes(std::int64_t cols, std::int64_t rows) noexcept;

  /// out[i · nb + j] for rows a[i] and b[j].
  void compute(const ConstMatrixView& rows, const std::uint32_t* a, std::int64_t na, const std::uint32_t* b,
               std::int64_t nb, double* out);

 private:
  struct Rows {
    const std::uint32_t* index;
    std::int64_t count;
    const double* norms;
  };
  static constexpr std::int64_t kTileRows = 48;
  void compute_tile(const RowSource& source, const Rows& a, const Rows& b, double* out, std::int64_t stride);
  void sum(Term term, const RowSource& source, const Rows& a, const Rows& b, double* out, std::int64_t stride);

  std::int64_t cols_;
  LineBuffer memory_;
  std::vector<double> norms_, differences_;
};

class StripPairs;

/// Distances of all pairs of rows, see pairwise_distances.
class AllDistances {
 public:
  /// Checks the rows as check_rows does, and does what needs all of them.
  AllDistances(const char* operation, const ConstMatrixView& rows, Executor& executor);
  AllDistances(const AllDistances&) = delete;
  ~AllDistances();

  /// Bytes that it takes, at most.
  static double bytes(const ConstMatrixView& rows, int threads) noexcept;

  /// ‖x‖² of each row.
  const std::vector<double>& squared_norms() const noexcept { return norms_; }

  /// Calls the sink with all of them, once.
  void for_each(const TileSink& sink);

 private:
  static bool is_small(const ConstMatrixView& rows) noexcept;
  LineBuffer sum_blocks(Term term) const;
  void for_each_of_small(const TileSink& sink);

  const ConstMatrixView rows_;
  const RowSource source_;
  Executor& executor_;
  std::vector<double> norms_;
  LineBuffer products_;                 ///< x·y of all pairs, if there are few
  std::unique_ptr<StripPairs> strips_;  ///< else
};

}  // namespace stun_ext::detail
