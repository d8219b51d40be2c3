// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <vector>

#include "aligned.hpp"
#include "check.hpp"
#include "load.hpp"
#include "sparse/expert_function.hpp"
#include "sparse/matmul.hpp"
#include "sparse/packed.hpp"
#include "stun_ext/experts.hpp"

namespace stun_ext {
namespace detail {
namespace {

constexpr const char* kOperation = "expert_forward";
constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::f16, DType::bf16};
constexpr std::int64_t kLine = 64;

/// An expert and the routed pairs of token and expert that are its own: [first, first + count) of all, in the order of
/// tokens.
struct Group {
  std::int64_t expert = 0, first = 0, count = 0;
  MatmulRows up, down;
  DType up_dtype = DType::f32, down_dtype = DType::f32;
  Products up_products = Products::f32, down_products = Products::f32;
  std::int64_t x = 0, h = 0, a = 0;  ///< where the group's memory starts: its tokens' form, hidden rows, a's form
};

/// Part of a group's work: rows in groups of 4, or tokens.
struct Part {
  std::int64_t group, begin, end;
};

MatmulRows rows_of_weight(const ExpertWeight& weight) noexcept {
  return std::visit([](const auto& matrix) { return rows_of(matrix); }, weight);
}

DType dtype_of(const ExpertWeight& weight) noexcept {
  const auto* packed = std::get_if<PackedMatrix>(&weight);
  return packed != nullptr ? packed->dtype() : std::get<ConstMatrixView>(weight).dtype;
}

/// One call: three passes over the executor (tokens into the form of the kernels, up and function, down and sums), with
/// all memory allocated before.
class Forward {
 public:
  Forward(const ConstMatrixView& x, const ConstMatrixView& index, const ConstMatrixView& weights,
          const Experts& experts, const MatrixView& y, Executor& executor)
      : x_(x), experts_(experts), y_(y), executor_(executor) {
    up_rows_ = packed_groups(rows_of_up()) * kPackedRows;
    down_rows_ = packed_groups(experts.hidden_size()) * kPackedRows;
    route(index, weights);
  }

  void run() {
    const LineBytes memory(plan());
    memory_ = memory.as<std::byte>();
    write_tokens();
    if (experts_.intermediate_size() > 0) multiply_up();
    multiply_down();
  }

 private:
  std::int64_t rows_of_up() const noexcept {
    return experts_.intermediate_size() * (experts_.function().is_gated ? 2 : 1);
  }
  template <class T>
  T* at(std::int64_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  /// Sorts the pairs by expert: token_ and weight_ hold them group after group.
  void route(const ConstMatrixView& index, const ConstMatrixView& weights) {
    const std::int64_t num_experts = experts_.num_experts();
    const auto* ids = static_cast<const std::int64_t*>(index.data);
    const auto id_of = [&](std::int64_t t, std::int64_t j) {
      const std::int64_t id = ids[t * index.row_stride + j * index.col_stride];
      return id >= 0 && id < num_experts ? id : num_experts;
    };
    std::vector<std::int64_t> first(static_cast<std::size_t>(num_experts) + 2, 0);
    for (std::int64_t t = 0; t < index.rows; ++t) {
      for (std::int64_t j = 0; j < index.cols; ++j) ++first[static_cast<std::size_t>(id_of(t, j)) + 1];
    }
    for (std::size_t e = 0; e <= static_cast<std::size_t>(num_experts); ++e) first[e + 1] += first[e];
    const auto pairs = static_cast<std::size_t>(first[static_cast<std::size_t>(num_experts)]);
    token_.resize(pairs);
    weight_.resize(pairs);
    for (std::int64_t e = 0; e < num_experts; ++e) {
      const std::int64_t begin = first[static_cast<std::size_t>(e)], end = first[static_cast<std::size_t>(e) + 1];
      if (begin < end) add_group(e, begin, end - begin);
    }
    for (std::int64_t t = 0; t < index.rows; ++t) {
      for (std::int64_t j = 0; j < index.cols; ++j) {
        const std::int64_t e = id_of(t, j);
        if (e == num_experts) continue;
        const auto pair = static_cast<std::size_t>(first[static_cast<std::size_t>(e)]++);
        token_[pair] = t;
        weight_[pair] = static_cast<float>(element(weights, t, j));
      }
    }
  }

  void add_group(std::int64_t expert, std::int64_t first, std::int64_t count) {
    Group group;
    group.expert = expert;
    group.first = first;
    group.count = count;
    const auto e = static_cast<std::size_t>(expert);
    group.up = rows_of_weight(experts_.up()[e]);
    group.down = rows_of_weight(experts_.down()[e]);
    group.up_dtype = dtype_of(experts_.up()[e]);
    group.down_dtype = dtype_of(experts_.down()[e]);
    group.up_products = choose_products(group.up_dtype, x_.dtype, count);
    group.down_products = choose_products(group.down_dtype, x_.dtype, count);
    groups_.push_back(group);
    most_ = std::max(most_, count);
  }

  /// Lays out the memory; returns its size.
  std::int64_t plan() {
    std::int64_t size = 0;
    const auto take = [&size](std::int64_t bytes) {
      const std::int64_t at = size;
      size += (bytes + kLine - 1) / kLine * kLine;
      return at;
    };
    for (Group& group : groups_) {
      // Experts of the only token read the same form.
      const bool is_shared = x_.rows == 1 && &group != groups_.data() && group.up_products == groups_[0].up_products &&
                             group.count == groups_[0].count;
      group.x = is_shared ? groups_[0].x : take(form_bytes(group.up_products, group.count, x_.cols));
      if (!is_shared) add_parts(&token_parts_, group, group.count, tokens_per_part());
      group.h = take(group.count * up_rows_ * 4);
      group.a = take(form_bytes(group.down_products, group.count, experts_.intermediate_size()));
    }
    sums_ = take(most_ * down_rows_ * 4);
    output_ = take(x_.rows * down_rows_ * 4);
    return size;
  }

  std::int64_t tokens_per_part() const noexcept {
    return (rows_per_task(x_.cols) + kFormTokens - 1) / kFormTokens * kFormTokens;
  }

  void add_parts(std::vector<Part>* parts, const Group& group, std::int64_t count, std::int64_t most) const {
    for (std::int64_t begin = 0; begin < count; begin += most) {
      parts->push_back({&group - groups_.data(), begin, std::min(count, begin + most)});
    }
  }

  void write_tokens() {
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        const Part& part = token_parts_[static_cast<std::size_t>(p)];
        const Group& group = groups_[static_cast<std::size_t>(part.group)];
        for (std::int64_t m = part.begin; m < part.end; ++m) {
          const std::int64_t token = token_[static_cast<std::size_t>(group.first + m)];
          write_token(group.up_products, x_, token, at<void>(group.x), m, group.count);
        }
      }
    };
    const auto parts = static_cast<std::int64_t>(token_parts_.size());
    const std::int64_t tokens_per_task = 4 * rows_per_task(x_.cols);  // worth starting a thread for
    const std::int64_t pairs = std::max<std::int64_t>(1, static_cast<std::int64_t>(token_.size()));
    executor_.parallel_for(parts, std::max<std::int64_t>(1, parts * tokens_per_task / pairs), task);
  }

  /// Groups of rows for one part, of the work on so many `matrices`.
  std::int64_t groups_per_part(std::int64_t rows, std::int64_t cols, std::int64_t matrices) const noexcept {
    return std::min(packed_groups_per_task(rows * matrices, cols, kTileGroups, executor_),
                    (packed_groups(rows) + kTileGroups - 1) / kTileGroups * kTileGroups);
  }

  /// h = up(x), and whoever ends a group's last part applies the function to it.
  void multiply_up() {
    const std::int64_t rows = rows_of_up(), matrices = static_cast<std::int64_t>(groups_.size());
    std::vector<Part> parts;
    std::vector<std::atomic<std::int64_t>> left(groups_.size());
    for (const Group& group : groups_) {
      const std::size_t before = parts.size();
      add_parts(&parts, group, packed_groups(rows), groups_per_part(rows, x_.cols, matrices));
      left[static_cast<std::size_t>(&group - groups_.data())] = static_cast<std::int64_t>(parts.size() - before);
    }
    auto task = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        const Part& part = parts[static_cast<std::size_t>(p)];
        const Group& group = groups_[static_cast<std::size_t>(part.group)];
        float* h = at<float>(group.h) + part.begin * kPackedRows;
        if (x_.cols == 0) {
          for (std::int64_t m = 0; m < group.count; ++m) {
            std::fill_n(h + m * up_rows_, (part.end - part.begin) * kPackedRows, 0.0f);
          }
        } else {
          multiply_groups(group.up_products, group.up_dtype, group.up, part.begin, part.end, at<void>(group.x),
                          group.count, h, up_rows_);
        }
        if (left[static_cast<std::size_t>(part.group)].fetch_sub(1, std::memory_order_acq_rel) == 1) activate(group);
      }
    };
    executor_.parallel_for(static_cast<std::int64_t>(parts.size()), 1, task);
  }

  /// From the hidden rows to the form that down reads, rounded to x's type.
  void activate(const Group& group) const noexcept {
    const std::int64_t rows = rows_of_up(), intermediate = experts_.intermediate_size();
    const ConstMatrixView& bias = experts_.up_bias();
    for (std::int64_t m = 0; m < group.count; ++m) {
      float* h = at<float>(group.h) + m * up_rows_;
      if (bias.data != nullptr) {
        for (std::int64_t r = 0; r < rows; ++r) h[r] += static_cast<float>(element(bias, group.expert, r));
      }
      apply(experts_.function(), h, intermediate);
      write_values(group.down_products, x_.dtype, h, intermediate, at<void>(group.a), m, group.count);
    }
  }

  /// Each task has some of y's columns, for all tokens, so that sums have one order.
  void multiply_down() {
    const std::int64_t hidden = experts_.hidden_size(), matrices = static_cast<std::int64_t>(groups_.size());
    const std::int64_t cols = experts_.intermediate_size() * std::max<std::int64_t>(1, matrices);
    auto task = [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t rows = (end - begin) * kPackedRows, first = begin * kPackedRows;
      float* sums = at<float>(sums_) + most_ * first;
      float* output = at<float>(output_) + x_.rows * first;
      std::fill_n(output, x_.rows * rows, 0.0f);
      const std::int64_t used = std::min(rows, hidden - first);
      for (const Group& group : groups_) add_group_outputs(group, begin, end, sums, output, used);
      store_block(output, rows, y_, first, used);
    };
    executor_.parallel_for(packed_groups(hidden), packed_groups_per_task(hidden, cols, kTileGroups, executor_), task);
  }

  void add_group_outputs(const Group& group, std::int64_t begin, std::int64_t end, float* sums, float* output,
                         std::int64_t used) const noexcept {
    const std::int64_t rows = (end - begin) * kPackedRows, first = begin * kPackedRows;
    if (experts_.intermediate_size() > 0) {
      multiply_groups(group.down_products, group.down_dtype, group.down, begin, end, at<void>(group.a), group.count,
                      sums, rows);
    } else {
      std::fill_n(sums, group.count * rows, 0.0f);
    }
    const ConstMatrixView& bias = experts_.down_bias();
    for (std::int64_t m = 0; m < group.count; ++m) {
      const auto pair = static_cast<std::size_t>(group.first + m);
      float* of_token = output + token_[pair] * rows;
      float* of_pair = sums + m * rows;
      if (bias.data != nullptr) {
        for (std::int64_t r = 0; r < used; ++r) {
          of_pair[r] += static_cast<float>(element(bias, group.expert, first + r));
        }
      }
      const float weight = weight_[pair];
      for (std::int64_t r = 0; r < used; ++r) of_token[r] += weight * of_pair[r];
    }
  }

  const ConstMatrixView x_;
  const Experts& experts_;
  const MatrixView y_;
  Executor& executor_;
  std::int64_t up_rows_ = 0, down_rows_ = 0;  ///< in whole groups
  std::vector<std::int64_t> token_;           ///< of each pair
  std::vector<float> weight_;
  std::vector<Group> groups_;
  std::vector<Part> token_parts_;
  std::int64_t most_ = 0;  ///< pairs of a group
  std::int64_t sums_ = 0, output_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace
}  // namespace detail

void expert_forward(ConstMatrixView x, ConstMatrixView top_k_index, ConstMatrixView top_k_weights,
                    const Experts& experts, MatrixView y, Executor& executor) {
  using detail::fail;
  using detail::kFloats;
  detail::check_view(detail::kOperation, "x", x, kFloats);
  detail::check_view(detail::kOperation, "top_k_index", top_k_index, {DType::i64});
  detail::check_view(detail::kOperation, "top_k_weights", top_k_weights, kFloats);
  detail::check_writable_view(detail::kOperation, "y", y, kFloats);
  const std::int64_t hidden = experts.hidden_size();
  if (x.cols != hidden) {
    fail(detail::kOperation, "x must be [tokens, ", hidden, "], got [", x.rows, ", ", x.cols, "]");
  }
  if (y.rows != x.rows || y.cols != hidden) {
    fail(detail::kOperation, "y must be [", x.rows, ", ", hidden, "], got [", y.rows, ", ", y.cols, "]");
  }
  if (top_k_index.rows != x.rows) {
    fail(detail::kOperation, "top_k_index must have a row for each of ", x.rows, " tokens, got ", top_k_index.rows);
  }
  if (top_k_weights.rows != top_k_index.rows || top_k_weights.cols != top_k_index.cols) {
    fail(detail::kOperation, "top_k_weights must be [", top_k_index.rows, ", ", top_k_index.cols, "], got [",
         top_k_weights.rows, ", ", top_k_weights.cols, "]");
  }
  if (x.rows == 0 || hidden == 0) return;
  detail::Forward(x, top_k_index, top_k_weights, experts, y, executor).run();
}

}  // namespace stun_ext
