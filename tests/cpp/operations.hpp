// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "stun_ext/allocation.hpp"
#include "stun_ext/cluster.hpp"
#include "stun_ext/distance.hpp"
#include "stun_ext/experts.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/matmul.hpp"
#include "stun_ext/saliency.hpp"
#include "stun_ext/sparse.hpp"
#include "support.hpp"

namespace stun_ext::test {

using Bytes = std::vector<unsigned char>;

/// A public operation on inputs that all share and none writes: what it returns, and what it wrote, as bytes.
struct Operation {
  std::string name;
  std::function<Bytes(Executor&)> run;
};

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// Small, but enough for several ranges of work in each.
struct OperationInputs {
  static constexpr std::int64_t kExperts = 150, kRows = 300, kCols = 512;

  Matrix rows{DType::f32, kExperts, 40};
  Matrix transposed{DType::bf16, kExperts, 40, Layout::transposed};
  Matrix many{DType::f32, kRows, 5};  ///< more than the matrix of tight_limit() holds
  Matrix counts{DType::i64, kExperts, kExperts};
  Matrix distances{DType::f64, kExperts, kExperts};
  std::vector<double> condensed = std::vector<double>(kExperts * (kExperts - 1) / 2);
  std::vector<Merge> merges;
  Matrix wide{DType::f32, kRows, kCols};
  Matrix narrow{DType::bf16, kRows, kCols, Layout::transposed};
  Matrix whole{DType::bf16, kRows, kCols};  ///< small numbers, whose products every instruction set sums alike
  std::vector<float> norm = std::vector<float>(kCols);
  std::vector<std::int64_t> prune_counts = std::vector<std::int64_t>(kRows);
  std::vector<std::uint8_t> mask = std::vector<std::uint8_t>(kRows * kCols);

  OperationInputs() {
    std::mt19937 generator(42);
    rows.fill_normal(generator);
    transposed.fill_normal(generator);
    many.fill_normal(generator);
    wide.fill_normal(generator);
    narrow.fill_normal(generator);
    whole.fill([&](std::int64_t, std::int64_t) { return static_cast<double>(generator() % 9) - 4.0; });
    counts.fill([](std::int64_t i, std::int64_t j) { return i == j ? 0.0 : static_cast<double>((i * j) % 11); });
    pairwise_distances(rows.view(), false, distances.view());
    condensed_distances(rows.view(), condensed);
    merges = linkage(condensed, Linkage::complete);
    for (float& value : norm) value = static_cast<float>(generator() % 1000);
    for (std::int64_t& count : prune_counts) count = static_cast<std::int64_t>(generator() % (kCols + 1));
    for (std::uint8_t& keep : mask) keep = generator() % 2;
  }

  /// Average linkage has distances between all rows of two clusters at a time, in each thread.
  static LinkageOptions tight_limit(Linkage method) {
    LinkageOptions options;
    options.memory_limit = method == Linkage::average ? 1700000 : 330000;
    return options;
  }
};

/// Every public operation that computes.
inline const std::vector<Operation>& all_operations() {
  static const OperationInputs in;
  constexpr std::int64_t n = OperationInputs::kExperts, rows = OperationInputs::kRows, cols = OperationInputs::kCols;
  static const auto square = [](DType dtype, auto&& compute) {
    Matrix out(dtype, n, n);
    compute(out.view());
    return out.bytes();
  };
  static const auto labels_of = [](std::int64_t size, auto&& compute) {
    std::vector<std::int64_t> labels(static_cast<std::size_t>(size));
    compute(labels);
    return bytes_of(labels);
  };
  static const auto mask_of = [](auto&& compute) {
    std::vector<std::uint8_t> mask(in.mask.size());
    compute(MaskView{mask.data(), rows, cols, cols});
    return mask;
  };
  static const std::vector<Operation> operations = [] {
    std::vector<Operation> all = {
        {"pairwise_distances",
         [](Executor& e) {
           return square(DType::f64, [&](MatrixView out) { pairwise_distances(in.rows.view(), true, out, e); });
         }},
        {"pairwise_distances of transposed bfloat16",
         [](Executor& e) {
           return square(DType::f32, [&](MatrixView out) { pairwise_distances(in.transposed.view(), false, out, e); });
         }},
        {"condensed_distances",
         [](Executor& e) {
           std::vector<double> out(in.condensed.size());
           condensed_distances(in.rows.view(), out, e);
           return bytes_of(out);
         }},
        {"coactivation_distances",
         [](Executor&) {
           return square(DType::f64, [](MatrixView out) { coactivation_distances(in.counts.view(), out); });
         }},
        {"mixed_distances",
         [](Executor& e) {
           return square(DType::f64, [&](MatrixView out) {
             mixed_distances(in.rows.view(), in.counts.view(), 0.5, false, out, e);
           });
         }},
        {"cut_tree_count",
         [](Executor&) { return labels_of(n, [](auto& labels) { cut_tree_count(in.merges, 20, labels); }); }},
        {"cut_tree_height",
         [](Executor&) {
           return labels_of(n, [](auto& labels) { cut_tree_height(in.merges, in.merges[n / 2].height, labels); });
         }},
        {"star_clusters",
         [](Executor&) {
           return labels_of(
               n, [](auto& labels) { star_clusters(in.distances.view(), in.merges[n / 2].height, 1, labels); });
         }},
        {"star_clusters_count",
         [](Executor&) {
           return labels_of(n, [](auto& labels) { star_clusters_count(in.distances.view(), 60, labels); });
         }},
        {"star_clusters_rows",
         [](Executor& e) {
           return labels_of(rows, [&](auto& labels) {
             star_clusters_rows(in.many.view(), 0.5, 1, labels, OperationInputs::tight_limit(Linkage::single), e);
           });
         }},
        {"allocate_experts",
         [](Executor& e) {
           const std::vector<ConstMatrixView> layers(3, in.distances.view());
           const Allocation found = allocate_experts(layers, 200, 10, 2, e);
           Bytes bytes = bytes_of(found.counts);
           const Bytes threshold = bytes_of(std::vector<double>{found.threshold});
           bytes.insert(bytes.end(), threshold.begin(), threshold.end());
           return bytes;
         }},
        {"wanda_scores",
         [](Executor& e) {
           Matrix out(DType::f32, rows, cols);
           wanda_scores(in.wide.view(), in.norm, out.view(), e);
           return out.bytes();
         }},
        {"wanda_mask",
         [](Executor& e) {
           return mask_of([&](MaskView mask) { wanda_mask(in.wide.view(), in.norm, in.prune_counts, mask, e); });
         }},
        {"wanda_mask of transposed bfloat16",
         [](Executor& e) {
           return mask_of([&](MaskView mask) { wanda_mask(in.narrow.view(), in.norm, in.prune_counts, mask, e); });
         }},
        {"wanda_prune",
         [](Executor& e) {
           Matrix weight = in.wide;
           wanda_prune(weight.view(), in.norm, in.prune_counts, e);
           return weight.bytes();
         }},
        {"nm_mask",
         [](Executor& e) { return mask_of([&](MaskView mask) { nm_mask(in.narrow.view(), 2, 4, mask, e); }); }},
        {"pack and unpack",
         [](Executor& e) {
           Matrix weight = in.narrow;
           unpack(pack(in.narrow.view(), e), weight.view(), e);
           return weight.bytes();
         }},
        {"packed_matmul",
         [](Executor& e) {
           Matrix y(DType::f32, rows, rows);
           packed_matmul(in.whole.view(), pack(in.whole.view(), e), y.view(), e);
           return y.bytes();
         }},
        {"dense_matmul of one token",
         [](Executor& e) {
           Matrix y(DType::f32, rows, 1, Layout::transposed);
           ConstMatrixView x = in.whole.view();
           x.rows = 1;
           MatrixView out = y.view();
           out = {out.data, 1, rows, rows, 1, DType::f32};
           dense_matmul(x, in.whole.view(), out, e);
           return y.bytes();
         }},
        {"expert_forward",
         [](Executor& e) {
           // Four experts, of parts of one matrix; without a gate, and of a function that keeps whole numbers whole.
           ExpertFunction function;
           function.activation = Activation::relu;
           function.is_gated = false;
           constexpr std::int64_t hidden = 256, intermediate = 32;
           const auto part = [](std::int64_t first_row, std::int64_t of_rows, std::int64_t of_cols) {
             ConstMatrixView view = in.whole.view();
             view.data = static_cast<const unsigned char*>(view.data) +
                         static_cast<std::size_t>(first_row * view.row_stride) * size_of(view.dtype);
             view.rows = of_rows;
             view.cols = of_cols;
             return view;
           };
           std::vector<ExpertWeight> up, down;
           for (std::int64_t expert = 0; expert < 4; ++expert) {
             up.emplace_back(pack(part(expert, intermediate, hidden), e));
             down.emplace_back(part(expert, hidden, intermediate));
           }
           Matrix index(DType::i64, rows, 2), y(DType::f32, rows, hidden);
           index.fill([](std::int64_t r, std::int64_t j) { return static_cast<double>((r * 5 + j) % 4); });
           expert_forward(part(0, rows, hidden), index.view(), part(0, rows, 2), Experts(up, down, function), y.view(),
                          e);
           return y.bytes();
         }},
        {"apply_mask",
         [](Executor& e) {
           Matrix weight = in.narrow;
           std::vector<std::uint8_t> mask = in.mask;
           apply_mask(weight.view(), {mask.data(), rows, cols, cols}, e);
           return weight.bytes();
         }},
    };
    for (const Linkage method : {Linkage::single, Linkage::complete, Linkage::average}) {
      all.push_back({"linkage " + std::to_string(static_cast<int>(method)),
                     [=](Executor& e) { return bytes_of(linkage(in.condensed, method, e)); }});
    }
    for (const Linkage method :
         {Linkage::single, Linkage::complete, Linkage::average, Linkage::ward, Linkage::centroid}) {
      const std::string number = std::to_string(static_cast<int>(method));
      all.push_back({"linkage_rows " + number,
                     [=](Executor& e) { return bytes_of(linkage_rows(in.rows.view(), method, {}, e)); }});
      all.push_back({"linkage_rows with a memory limit " + number, [=](Executor& e) {
                       std::vector<Merge> merges =
                           linkage_rows(in.many.view(), method, OperationInputs::tight_limit(method), e);
                       // The last bits of these vary with the number of threads, as documented; the merges do not.
                       const bool is_rounded = method == Linkage::ward || method == Linkage::centroid;
                       for (Merge& merge : merges) {
                         if (is_rounded) merge.height = static_cast<float>(merge.height);
                       }
                       return bytes_of(merges);
                     }});
    }
    return all;
  }();
  return operations;
}

/// What each of them gives on one thread.
inline const std::vector<Bytes>& serial_results() {
  static const std::vector<Bytes> results = [] {
    const Threads one(1);
    std::vector<Bytes> all;
    for (const Operation& operation : all_operations()) all.push_back(operation.run(default_executor()));
    return all;
  }();
  return results;
}

}  // namespace stun_ext::test
