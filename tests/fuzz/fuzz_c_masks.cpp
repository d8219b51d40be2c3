// SPDX-License-Identifier: Apache-2.0
// The C ABI: scores and masks, and what tells about the library and the processor.
#include "c_arguments.hpp"
#include "mask_references.hpp"

namespace stun_ext::fuzz {
namespace {

void run_scores(Input& input) {
  Call call(input, "wanda_scores");
  const std::int64_t rows = pick_size(input, 6, 20), cols = pick_size(input, 20, 100);
  const AnyMatrix weight(input, pick_dtype(input), rows, cols), out(input, DType::f32, rows, cols, false);
  const std::vector<float> norm = pick_norms(input, cols);
  const std::vector<unsigned char> before = out.bytes();
  const auto* of_weight = call.matrix(weight);
  const auto* of_out = call.out(out);
  const std::int64_t size = norm.empty() ? 0 : call.size_or_none(cols);
  const bool is_done = call.succeeded(stun_ext_wanda_scores(of_weight, norm.data(), size, of_out, call.executor()));
  if (call.is_refused()) require(out.bytes() == before, "scores stay when arguments are refused");
  if (!is_done || of_weight->rows != rows || of_weight->cols != cols) return;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::vector<float> expected = scores_of(weight, size == 0 ? std::vector<float>() : norm, r);
    for (std::int64_t c = 0; c < cols; ++c) {
      require(out.get(r, c) == expected[static_cast<std::size_t>(c)], "the score in float32");
    }
  }
}

void run_wanda(Input& input) {
  const bool prunes = input.ConsumeBool();
  Call call(input, prunes ? "wanda_prune" : "wanda_mask");
  const std::int64_t rows = pick_size(input, 6, 20), cols = pick_size(input, 20, 100);
  const AnyMatrix weight(input, pick_dtype(input), rows, cols, false);
  AnyMask mask(input, rows, cols);
  const std::vector<float> norm = pick_norms(input, cols);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(rows));
  for (std::int64_t& count : counts) count = input.ConsumeIntegralInRange<std::int64_t>(0, cols);
  const bool is_legal = is_legal_weight(weight) && are_legal(norm);
  const Kept kept = is_legal ? by_counts(weight, norm, counts) : Kept();
  if (rows > 0 && call.spoils()) {
    counts[0] = input.ConsumeBool() ? cols + 1 : -1 - std::abs(input.ConsumeIntegral<std::int32_t>() / 2);
    call.set_wrong();
  }
  const Outcome outcome(weight, mask);
  const std::int64_t norm_size = norm.empty() ? 0 : call.size_or_none(cols), counts_size = call.size(rows);
  std::int64_t zeros = -7;
  bool is_done, is_whole;
  if (prunes) {
    const auto* to = call.out(weight);
    is_whole = to == nullptr || (to->rows == rows && to->cols == cols);
    is_done = call.succeeded(stun_ext_wanda_prune(to, norm.data(), norm_size, counts.data(), counts_size,
                                                  call.pointer(&zeros), call.executor()));
  } else {
    const auto* of = call.matrix(weight);
    is_whole = of == nullptr || (of->rows == rows && of->cols == cols);
    is_done = call.succeeded(
        stun_ext_wanda_mask(of, norm.data(), norm_size, counts.data(), counts_size, call.mask(mask), call.executor()));
  }
  if (call.is_refused()) {
    outcome.check_untouched(!prunes && !is_legal_weight(weight));
    require(zeros == -7, "so does the count");
  }
  if (call.is_honest() && !call.may_end_early() && rows > 0 && cols > 0) {
    require(is_done == is_legal, "what is legal is done");
  }
  if (!is_done || !is_whole || (norm_size == 0) != norm.empty()) return;
  prunes ? outcome.check_pruned(kept, zeros) : outcome.check_mask(kept);
}

void run_n_of_m(Input& input) {
  const bool prunes = input.ConsumeBool();
  Call call(input, prunes ? "nm_prune" : "nm_mask");
  const auto m = input.ConsumeIntegralInRange<std::int64_t>(2, 20);
  const auto n = input.ConsumeIntegralInRange<std::int64_t>(1, m - 1);
  const std::int64_t rows = pick_size(input, 4, 20), cols = m * input.ConsumeIntegralInRange<std::int64_t>(0, 4);
  const AnyMatrix weight(input, pick_dtype(input), rows, cols, false);
  AnyMask mask(input, rows, cols);
  const std::vector<float> norm = prunes ? pick_norms(input, cols) : std::vector<float>();
  const bool is_legal =
      prunes ? is_legal_weight(weight) && are_legal(norm)
             : is_weight(weight.view().dtype) && weight.all_of([](double value) { return !std::isnan(value); });
  const Kept kept = is_legal ? by_blocks(weight, norm, !prunes, n, m) : Kept();
  std::int64_t asked_n = n, asked_m = m;
  if (call.spoils()) {
    asked_n = input.ConsumeIntegral<std::int64_t>();
    asked_m = input.ConsumeBool() ? m : input.ConsumeIntegral<std::int64_t>();
    if (asked_n < 1 || asked_n >= asked_m) call.set_wrong();
  }
  const Outcome outcome(weight, mask);
  const std::int64_t norm_size = norm.empty() ? 0 : call.size_or_none(cols);
  std::int64_t zeros = -7;
  bool is_done, is_whole;
  if (prunes) {
    const auto* to = call.out(weight);
    is_whole = to == nullptr || (to->rows == rows && to->cols == cols);
    is_done = call.succeeded(
        stun_ext_nm_prune(to, norm.data(), norm_size, asked_n, asked_m, call.pointer(&zeros), call.executor()));
  } else {
    const auto* of = call.matrix(weight);
    is_whole = of == nullptr || (of->rows == rows && of->cols == cols);
    is_done = call.succeeded(stun_ext_nm_mask(of, asked_n, asked_m, call.mask(mask), call.executor()));
  }
  if (call.is_refused()) {
    outcome.check_untouched(!prunes && !is_legal_weight(weight));
    require(zeros == -7, "so does the count");
  }
  if (call.is_honest() && !call.may_end_early() && rows > 0 && cols > 0) {
    require(is_done == is_legal, "what is legal is done");
  }
  if (!is_done || !is_whole || asked_n != n || asked_m != m || (norm_size == 0) != norm.empty()) return;
  prunes ? outcome.check_pruned(kept, zeros) : outcome.check_mask(kept);
}

void run_apply(Input& input) {
  Call call(input, "apply_mask");
  const std::int64_t rows = pick_size(input, 6, 20), cols = pick_size(input, 20, 100);
  const AnyMatrix weight(input, pick_dtype(input), rows, cols, false);
  AnyMask mask(input, rows, cols);
  Kept kept(static_cast<std::size_t>(rows), std::vector<bool>(static_cast<std::size_t>(cols)));
  for (std::size_t r = 0; r < kept.size(); ++r) {
    for (std::size_t c = 0; c < kept[r].size(); ++c) {
      kept[r][c] = input.ConsumeBool();
      mask.at(static_cast<std::int64_t>(r), static_cast<std::int64_t>(c)) = kept[r][c] ? 1 : 0;
    }
  }
  const Outcome outcome(weight, mask);
  const auto* to = call.out(weight);
  const bool is_done = call.succeeded(stun_ext_apply_mask(to, call.mask(mask), call.executor()));
  if (call.is_refused()) outcome.check_untouched();
  if (!is_done || to->rows != rows || to->cols != cols) return;
  std::int64_t zeros = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) zeros += weight.get(r, c) == 0.0;
  }
  outcome.check_pruned(kept, zeros);
  outcome.check_mask(kept);
}

void run_sizes(Input& input) {
  Call call(input, "pruned_per_row");
  const auto cols = input.ConsumeBool() ? input.ConsumeIntegralInRange<std::int64_t>(0, 1 << 20)
                                        : input.ConsumeIntegral<std::int64_t>();
  const double sparsity = input.ConsumeBool() ? input.ConsumeProbability<double>() : pick_double(input);
  if (cols < 0 || !(sparsity >= 0.0 && sparsity < 1.0)) call.set_wrong();
  std::int64_t count = -7;
  const bool is_done = call.succeeded(stun_ext_pruned_per_row(cols, sparsity, call.pointer(&count)));
  if (!is_done) return require(count == -7, "the count stays when arguments are refused");
  if (cols < std::int64_t{1} << 40) {
    require(count == static_cast<std::int64_t>(static_cast<double>(cols) * sparsity), "int(cols * sparsity)");
  }
}

void run_library(Input& input) {
  const auto number =
      input.ConsumeBool() ? input.ConsumeIntegralInRange<std::int32_t>(-1, 7) : input.ConsumeIntegral<std::int32_t>();
  const std::int64_t size = stun_ext_dtype_size(number);
  require((size > 0) == (number >= STUN_EXT_FLOAT32 && number <= STUN_EXT_INT64), "the size of what is a dtype");
  require((stun_ext_dtype_name(number) == std::string("unknown")) == (size == 0), "the name of a dtype");
  const bool is_status = number >= STUN_EXT_OK && number <= STUN_EXT_INTERNAL;
  require((stun_ext_status_name(number) == std::string("unknown")) != is_status, "the name of a status");
  const bool is_isa = number >= STUN_EXT_SCALAR && number <= STUN_EXT_NEON;
  require((stun_ext_isa_name(number) == std::string("unknown")) != is_isa, "the name of an instruction set");
  require(stun_ext_version() != std::string(), "a version");

  const char *model = nullptr, *features = nullptr;
  Call of_model(input, "cpu_model"), of_features(input, "cpu_features");
  require(of_model.succeeded(stun_ext_cpu_model(of_model.pointer(&model))) == (model != nullptr), "a model");
  require(of_features.succeeded(stun_ext_cpu_features(of_features.pointer(&features))) == (features != nullptr),
          "features");

  Call asks(input, "isa_supported");
  std::int32_t supported = -7;
  if (!is_isa) asks.set_wrong();
  if (asks.succeeded(stun_ext_isa_supported(number, asks.pointer(&supported)))) {
    require(supported == 0 || supported == 1, "yes or no");
  } else {
    require(supported == -7, "no answer where it is refused");
  }
  stun_ext_isa before = -7, after = -7;
  Call gets(input, "get_isa");
  if (!gets.succeeded(stun_ext_get_isa(gets.pointer(&before)))) return require(before == -7, "no answer");
  if (supported == -7) stun_ext_isa_supported(number, &supported);
  const stun_ext_status set = stun_ext_set_isa(number);
  require(set == (!is_isa          ? STUN_EXT_INVALID_ARGUMENT
                  : supported == 1 ? STUN_EXT_OK
                                   : STUN_EXT_UNAVAILABLE),
          "what is supported is set");
  require(stun_ext_get_isa(&after) == STUN_EXT_OK && after == (set == STUN_EXT_OK ? number : before), "and only that");
  require(stun_ext_set_isa(before) == STUN_EXT_OK, "what was in use is supported");

  const std::int32_t threads = stun_ext_num_threads();
  Call sets(input, "set_num_threads");
  if (number < 1) sets.set_wrong();
  require(sets.succeeded(stun_ext_set_num_threads(number)) == (number >= 1), "any number of threads");
  require(stun_ext_num_threads() == (number >= 1 ? number : threads), "are set");
  stun_ext_set_num_threads(threads);
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stun_ext::fuzz;
  Input input(data, size);
  void (*const runs[])(Input&) = {run_scores, run_wanda, run_wanda, run_n_of_m, run_apply, run_sizes, run_library};
  runs[input.ConsumeIntegralInRange(0, 6)](input);
  return 0;
}
