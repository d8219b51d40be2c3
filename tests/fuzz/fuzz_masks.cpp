// SPDX-License-Identifier: Apache-2.0
#include "mask_references.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/saliency.hpp"

namespace stun_ext::fuzz {
namespace {

void run_wanda(Input& input) {
  const std::int64_t rows = pick_size(input, 6, 40), cols = pick_size(input, 20, 150);
  AnyMatrix weight(input, pick_dtype(input), rows, cols, false);
  std::vector<float> norm(input.ConsumeBool() ? static_cast<std::size_t>(cols) : 0);
  for (float& value : norm)
    value = static_cast<float>(input.ConsumeBool() ? input.ConsumeIntegralInRange(0, 4) : pick_double(input));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(rows));
  for (std::int64_t& count : counts) count = input.ConsumeIntegralInRange<std::int64_t>(-1, cols + 1) % (cols + 1);
  AnyMask mask(input, rows, cols);
  AnyMatrix scores(input, DType::f32, rows, cols, false);
  const MatrixView view = maybe_spoilt(input, weight.view());
  const MaskView mask_view = maybe_spoilt_mask(input, mask.view());
  Splitting executor(input);
  const std::vector<std::uint8_t> mask_before = mask.bytes();
  const std::vector<unsigned char> before = weight.bytes(), scores_before = scores.bytes();

  const bool has_scores = accepts("wanda_scores", [&] {
    at_every_isa([&] {
      wanda_scores(view, norm, scores.view(), executor);
      return scores.bytes();
    });
  });
  if (has_scores) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const float of_norm = norm.empty() ? 1.0f : std::sqrt(norm[static_cast<std::size_t>(c)]);
        require(scores.get(r, c) == std::abs(static_cast<float>(weight.get(r, c))) * of_norm, "the score in float32");
      }
    }
  } else {
    require(scores.bytes() == scores_before, "scores stay when arguments are refused");
  }

  const bool has_mask = accepts("wanda_mask", [&] {
    at_every_isa([&] {
      wanda_mask(view, norm, counts, mask_view, executor);
      return mask.bytes();
    });
  });
  if (has_mask && (view.rows != rows || view.cols != cols)) return;
  if (has_mask) {
    require(has_scores, "masks are made of what has scores");
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<float> row;
      for (std::int64_t c = 0; c < cols; ++c) row.push_back(static_cast<float>(scores.get(r, c)));
      const std::vector<std::int64_t> order = ascending(row);
      for (std::size_t place = 0; place < order.size(); ++place) {
        const bool is_kept = static_cast<std::int64_t>(place) >= counts[static_cast<std::size_t>(r)];
        require(mask.at(r, order[place]) == (is_kept ? 1 : 0), "the lowest scores go, by a stable sort");
      }
    }
  } else if (has_scores) {  // else weights that are not finite may have been found late
    require(mask.bytes() == mask_before, "a mask stays when arguments are refused");
  }

  std::int64_t zeros = 0;
  const bool is_pruned = accepts("wanda_prune", [&] {
    at_every_isa([&] {
      weight.restore(before);
      zeros = wanda_prune(view, norm, counts, executor);
      return weight.bytes();
    });
  });
  if (!is_pruned) require(weight.bytes() == before, "weights stay when arguments are refused");
  if (!is_pruned || !has_mask) return;
  const std::vector<unsigned char> pruned = weight.bytes();
  std::int64_t zeros_seen = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) zeros_seen += weight.get(r, c) == 0.0;
  }
  require(zeros == zeros_seen, "it counts the zeros");
  weight.restore(before);
  apply_mask(view, mask_view, executor);
  require(weight.bytes() == pruned, "pruning is the mask, applied");
}

void run_n_of_m(Input& input) {
  const std::int64_t m = input.ConsumeIntegralInRange<std::int64_t>(0, 40);
  const std::int64_t n = input.ConsumeIntegralInRange<std::int64_t>(-1, m + 1);
  const std::int64_t rows = pick_size(input, 4, 40),
                     cols = input.ConsumeIntegralInRange<std::int64_t>(0, 5) * std::max<std::int64_t>(m, 1);
  AnyMatrix scores(input, pick_dtype(input), rows, cols);
  AnyMask mask(input, rows, cols);
  const MatrixView view = maybe_spoilt(input, scores.view());
  const MaskView mask_view = maybe_spoilt_mask(input, mask.view());
  Splitting executor(input);
  const std::vector<std::uint8_t> before = mask.bytes();
  bool has_nan = false;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) has_nan |= std::isnan(scores.get(r, c));
  }
  const bool is_done = accepts("nm_mask", [&] {
    at_every_isa([&] {
      nm_mask(view, n, m, mask_view, executor);
      return mask.bytes();
    });
  });
  if (!is_done) return require(has_nan || mask.bytes() == before, "a mask stays when arguments are refused");
  if (view.rows != rows || view.cols != cols) return;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t first = 0; first < cols; first += m) {
      std::vector<float> block;
      for (std::int64_t c = first; c < first + m; ++c) block.push_back(static_cast<float>(scores.get(r, c)));
      const std::vector<std::int64_t> order = ascending(block);
      for (std::int64_t place = 0; place < m; ++place) {
        require(mask.at(r, first + order[static_cast<std::size_t>(place)]) == (place >= m - n ? 1 : 0),
                "the n highest of m stay, by a stable sort");
      }
    }
  }
}

void run_sizes(Input& input) {
  const std::int64_t cols = input.ConsumeBool() ? input.ConsumeIntegralInRange<std::int64_t>(0, 20000)
                                                : input.ConsumeIntegral<std::int64_t>();
  const double sparsity = input.ConsumeBool() ? input.ConsumeProbability<double>() : pick_double(input);
  std::int64_t count = 0;
  if (accepts("pruned_per_row", [&] { count = pruned_per_row(cols, sparsity); })) {
    require(count >= 0 && count <= cols, "a part of the row is pruned");
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  switch (input.ConsumeIntegralInRange(0, 7)) {
    case 0:
      stun_ext::fuzz::run_sizes(input);
      break;
    case 1:
    case 2:
      stun_ext::fuzz::run_n_of_m(input);
      break;
    default:
      stun_ext::fuzz::run_wanda(input);
  }
  return 0;
}
