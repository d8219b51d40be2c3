// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numeric>

#include "fuzz.hpp"
#include "stun_ext/mask.hpp"

/// Masks in memory that ends where they do, and what scores, masks and pruning give by their definitions.
namespace stun_ext::fuzz {

/// Columns from the lowest score up, the lower column first among equals.
inline std::vector<std::int64_t> ascending(const std::vector<float>& scores) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] < scores[static_cast<std::size_t>(b)];
  });
  return order;
}

/// A mask in memory that ends where it does.
class AnyMask {
 public:
  AnyMask(Input& input, std::int64_t rows, std::int64_t cols)
      : stride_(cols + input.ConsumeIntegralInRange(0, 3)),
        bytes_(static_cast<std::size_t>(rows == 0 || cols == 0 ? 1 : (rows - 1) * stride_ + cols), 9),
        view_{bytes_.data(), rows, cols, stride_} {
    if (input.ConsumeBool() || rows == 0 || cols == 0) return;
    view_.data += (rows - 1) * stride_;
    view_.row_stride = -stride_;
  }
  MaskView view() const { return view_; }
  std::vector<std::uint8_t>& bytes() { return bytes_; }
  std::uint8_t& at(std::int64_t row, std::int64_t col) const { return view_.data[row * view_.row_stride + col]; }

 private:
  std::int64_t stride_;
  std::vector<std::uint8_t> bytes_;
  MaskView view_;
};

inline MaskView maybe_spoilt_mask(Input& input, MaskView mask) {
  const int kind = input.ConsumeIntegralInRange(0, 30);
  if (kind == 0) mask.data = nullptr;
  if (kind == 1) mask.rows /= 2;
  if (kind == 2) mask.cols /= 2;
  if (kind == 3)
    mask.row_stride = input.ConsumeIntegralInRange<std::int64_t>(0, std::max<std::int64_t>(mask.cols, 1) - 1);
  if (kind == 4 && mask.rows <= 1) mask.row_stride = std::numeric_limits<std::int64_t>::min();
  return mask;
}

inline bool is_weight(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

/// Squared norms of the inputs: none, or one for each column.
inline std::vector<float> pick_norms(Input& input, std::int64_t cols) {
  std::vector<float> norm(input.ConsumeBool() ? static_cast<std::size_t>(cols) : 0);
  for (float& value : norm) {
    value = static_cast<float>(input.ConsumeIntegralInRange(0, 5) > 0 ? input.ConsumeIntegralInRange(0, 4)
                                                                      : pick_double(input));
  }
  return norm;
}

/// Wanda scores by their definition, in float32; empty where there are none.
inline std::vector<float> scores_of(const AnyMatrix& weight, const std::vector<float>& norm, std::int64_t row) {
  std::vector<float> scores;
  for (std::int64_t c = 0; c < weight.view().cols; ++c) {
    const float of_norm = norm.empty() ? 1.0f : std::sqrt(norm[static_cast<std::size_t>(c)]);
    scores.push_back(std::abs(static_cast<float>(weight.get(row, c))) * of_norm);
  }
  return scores;
}

/// Of each row, whether a column stays.
using Kept = std::vector<std::vector<bool>>;

inline Kept by_counts(const AnyMatrix& weight, const std::vector<float>& norm,
                      const std::vector<std::int64_t>& counts) {
  Kept kept;
  for (std::int64_t r = 0; r < weight.view().rows; ++r) {
    kept.emplace_back(static_cast<std::size_t>(weight.view().cols), true);
    const std::vector<std::int64_t> order = ascending(scores_of(weight, norm, r));
    for (std::int64_t place = 0; place < counts[static_cast<std::size_t>(r)]; ++place) {
      kept.back()[static_cast<std::size_t>(order[static_cast<std::size_t>(place)])] = false;
    }
  }
  return kept;
}

inline Kept by_blocks(const AnyMatrix& weight, const std::vector<float>& norm, bool is_score, std::int64_t n,
                      std::int64_t m) {
  Kept kept;
  for (std::int64_t r = 0; r < weight.view().rows; ++r) {
    kept.emplace_back(static_cast<std::size_t>(weight.view().cols), true);
    std::vector<float> scores = scores_of(weight, norm, r);
    if (is_score) {
      for (std::size_t c = 0; c < scores.size(); ++c) {
        scores[c] = static_cast<float>(weight.get(r, static_cast<std::int64_t>(c)));
      }
    }
    for (std::int64_t first = 0; first < weight.view().cols; first += m) {
      const std::vector<std::int64_t> order = ascending({scores.begin() + first, scores.begin() + first + m});
      for (std::int64_t place = 0; place < m - n; ++place) {
        kept.back()[static_cast<std::size_t>(first + order[static_cast<std::size_t>(place)])] = false;
      }
    }
  }
  return kept;
}

inline bool is_legal_weight(const AnyMatrix& weight) {
  return is_weight(weight.view().dtype) && weight.all_of([](double value) { return std::isfinite(value); });
}

inline bool are_legal(const std::vector<float>& norm) {
  return std::all_of(norm.begin(), norm.end(), [](float value) { return value >= 0.0f && std::isfinite(value); });
}

/// What pruning or a mask has to give, and what it has given.
class Outcome {
 public:
  Outcome(const AnyMatrix& weight, AnyMask& mask)
      : weight_(weight), mask_(mask), values_(values_of(weight)), bytes_(weight.bytes()), mask_bytes_(mask.bytes()) {}

  /// @param is_mask_unspecified  what the weights hold may have been found while the mask was written
  void check_untouched(bool is_mask_unspecified = false) const {
    require((is_mask_unspecified || mask_.bytes() == mask_bytes_) && weight_.bytes() == bytes_,
            "outputs stay when arguments are refused");
  }
  void check_mask(const Kept& kept) const {
    for (std::size_t r = 0; r < kept.size(); ++r) {
      for (std::size_t c = 0; c < kept[r].size(); ++c) {
        require(mask_.at(static_cast<std::int64_t>(r), static_cast<std::int64_t>(c)) == (kept[r][c] ? 1 : 0),
                "the lowest scores go, by a stable sort");
      }
    }
  }
  void check_pruned(const Kept& kept, std::int64_t zeros) const {
    std::int64_t seen = 0;
    for (std::size_t r = 0; r < kept.size(); ++r) {
      for (std::size_t c = 0; c < kept[r].size(); ++c) {
        const double value = weight_.get(static_cast<std::int64_t>(r), static_cast<std::int64_t>(c));
        const double before = values_[r][c];
        require(kept[r][c] ? value == before || (std::isnan(value) && std::isnan(before))
                           : value == 0.0 && !std::signbit(value),
                "what goes is +0, and what stays is as it was");
        seen += value == 0.0;
      }
    }
    require(zeros == seen, "it counts the zeros");
  }

 private:
  static std::vector<std::vector<double>> values_of(const AnyMatrix& matrix) {
    std::vector<std::vector<double>> values(static_cast<std::size_t>(matrix.view().rows));
    for (std::size_t r = 0; r < values.size(); ++r) {
      for (std::int64_t c = 0; c < matrix.view().cols; ++c) {
        values[r].push_back(matrix.get(static_cast<std::int64_t>(r), c));
      }
    }
    return values;
  }

  const AnyMatrix& weight_;
  AnyMask& mask_;
  std::vector<std::vector<double>> values_;
  std::vector<unsigned char> bytes_;
  std::vector<std::uint8_t> mask_bytes_;
};

}  // namespace stun_ext::fuzz
