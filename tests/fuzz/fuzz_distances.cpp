// SPDX-License-Identifier: Apache-2.0
#include "references.hpp"
#include "stun_ext/distance.hpp"

namespace stun_ext::fuzz {
namespace {

bool is_finite(double value) { return std::isfinite(value); }

void run(Input& input) {
  AnyMatrix rows(input, pick_dtype(input), pick_size(input, 6, 70), pick_size(input, 12, 140));
  const std::int64_t n = rows.view().rows;
  const std::int64_t n_counts = input.ConsumeIntegralInRange(0, 7) == 0 ? pick_size(input, 6, 20) : n;
  AnyMatrix counts(input, input.ConsumeBool() ? DType::f64 : pick_dtype(input), n_counts, n_counts);
  if (input.ConsumeBool()) {  // mostly symmetric with a zero diagonal, as it has to be
    for (std::int64_t i = 0; i < n_counts; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) counts.set(i, j, i == j ? 0.0 : counts.get(j, i));
    }
  }
  AnyMatrix out(input, input.ConsumeBool() ? DType::f64 : pick_dtype(input), n, n, false);
  const MatrixView rows_view = maybe_spoilt(input, rows.view());
  const MatrixView counts_view = maybe_spoilt(input, counts.view());
  const MatrixView out_view = maybe_spoilt(input, out.view());
  const bool divide = input.ConsumeBool();
  const double mix = pick_double(input);
  Splitting executor(input);

  std::vector<double> condensed(static_cast<std::size_t>(n > 0 ? n * (n - 1) / 2 : 0));
  const bool is_legal = rows_view.rows == n && accepts("condensed_distances", [&] {
                          condensed = at_every_isa([&] {
                            condensed_distances(rows_view, condensed, executor);
                            return condensed;
                          });
                        });
  if (is_legal && rows_view.cols == rows.view().cols) {
    require(rows.all_of(is_finite), "only finite rows are accepted");
    check_distances(rows, condensed);
  }

  const std::vector<unsigned char> before = out.bytes();
  const bool is_done = accepts("pairwise_distances", [&] {
    at_every_isa([&] {
      pairwise_distances(rows_view, divide, out_view, executor);
      return out.bytes();
    });
  });
  if (is_done) {
    require(is_legal, "both forms accept the same rows");
    std::size_t pair = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      require(out.get(i, i) == 0.0, "a row is at distance zero from itself");
      for (std::int64_t j = i + 1; j < n; ++j, ++pair) {
        require(out.get(i, j) == out.get(j, i), "distances are symmetric and not NaN");
        if (divide) continue;
        const double expected = out.view().dtype == DType::f32 ? static_cast<float>(condensed[pair]) : condensed[pair];
        require(out.get(i, j) == expected, "both forms give the same distances");
      }
    }
  } else {
    require(out.bytes() == before, "nothing is written when arguments are refused");
  }

  out.restore(before);
  if (!accepts("coactivation_distances", [&] { coactivation_distances(counts_view, out_view); })) {
    require(out.bytes() == before, "nothing is written when counts are refused");
  }
  out.restore(before);
  const bool is_mixed = accepts("mixed_distances", [&] {
    at_every_isa([&] {
      mixed_distances(rows_view, counts_view, mix, divide, out_view, executor);
      return out.bytes();
    });
  });
  if (!is_mixed) require(out.bytes() == before, "nothing is written when a mixture is refused");
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  stun_ext::fuzz::run(input);
  return 0;
}
