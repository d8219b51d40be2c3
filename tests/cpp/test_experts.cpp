// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "sparse/matmul.hpp"
#include "stun_ext/experts.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

using test::expect_error;
using test::Layout;
using test::Matrix;

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

double epsilon(DType dtype) { return dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8; }

/// A layer in host memory: matrices of half zeros, every third expert dense, and what the reference needs.
struct Layer {
  Layer(std::int64_t num_experts, std::int64_t hidden, std::int64_t intermediate, DType dtype,
        const ExpertFunction& function, bool has_bias)
      : function(function), hidden(hidden), intermediate(intermediate) {
    std::mt19937 generator(11);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    const std::int64_t rows = intermediate * (function.is_gated ? 2 : 1);
    const auto pruned = [&](std::int64_t r, std::int64_t c) {
      Matrix matrix(dtype, r, c, Layout::padded_rows);
      matrix.fill([&](std::int64_t, std::int64_t) { return uniform(generator) < 0.5 ? 0.0 : 0.3 * normal(generator); });
      return matrix;
    };
    for (std::int64_t e = 0; e < num_experts; ++e) {
      up.push_back(pruned(rows, hidden));
      down.push_back(pruned(hidden, intermediate));
    }
    if (!has_bias) return;
    up_bias.push_back(pruned(num_experts, rows));
    down_bias.push_back(pruned(num_experts, hidden));
  }

  Experts experts() const {
    std::vector<ExpertWeight> ups, downs;
    for (std::size_t e = 0; e < up.size(); ++e) {
      const bool is_dense = e % 3 == 2;
      ups.push_back(is_dense ? ExpertWeight(up[e].view()) : ExpertWeight(pack(up[e].view())));
      downs.push_back(is_dense ? ExpertWeight(down[e].view()) : ExpertWeight(pack(down[e].view())));
    }
    return Experts(ups, downs, function, up_bias.empty() ? ConstMatrixView{} : up_bias[0].view(),
                   down_bias.empty() ? ConstMatrixView{} : down_bias[0].view());
  }

  ExpertFunction function;
  std::int64_t hidden, intermediate;
  std::vector<Matrix> up, down, up_bias, down_bias;
};

double phi(const ExpertFunction& f, double z) {
  switch (f.activation) {
    case Activation::silu:
      return z / (1.0 + std::exp(-static_cast<double>(f.alpha) * z));
    case Activation::gelu:
      return 0.5 * z * std::erfc(-z / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * z * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (z + 0.044715 * z * z * z)));
    case Activation::relu:
      return std::max(z, 0.0);
    case Activation::relu_squared:
      return std::max(z, 0.0) * std::max(z, 0.0);
  }
  return 0.0;
}

/// An expert's output for one token in float64, and how large the numbers were that went into each sum.
struct Output {
  std::vector<double> value, magnitude;
};

Output reference(const Layer& layer, std::size_t expert, const Matrix& x, std::int64_t token) {
  const std::int64_t rows = layer.intermediate * (layer.function.is_gated ? 2 : 1);
  std::vector<double> h(static_cast<std::size_t>(rows)), a(static_cast<std::size_t>(layer.intermediate));
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = layer.up_bias.empty() ? 0.0 : layer.up_bias[0].get(static_cast<std::int64_t>(expert), r);
    for (std::int64_t c = 0; c < layer.hidden; ++c) sum += layer.up[expert].get(r, c) * x.get(token, c);
    h[static_cast<std::size_t>(r)] = sum;
  }
  const double limit = static_cast<double>(layer.function.limit);
  for (std::int64_t i = 0; i < layer.intermediate; ++i) {
    const bool is_interleaved = layer.function.is_interleaved;
    const auto at = [&](std::int64_t r) { return h[static_cast<std::size_t>(r)]; };
    if (!layer.function.is_gated) {
      a[static_cast<std::size_t>(i)] = phi(layer.function, at(i));
      continue;
    }
    const double gate = std::min(at(is_interleaved ? 2 * i : i), limit);
    const double up = std::clamp(at(is_interleaved ? 2 * i + 1 : layer.intermediate + i), -limit, limit);
    a[static_cast<std::size_t>(i)] = phi(layer.function, gate) * (up + static_cast<double>(layer.function.up_offset));
  }
  Output output;
  for (std::int64_t r = 0; r < layer.hidden; ++r) {
    double sum = layer.down_bias.empty() ? 0.0 : layer.down_bias[0].get(static_cast<std::int64_t>(expert), r);
    double magnitude = std::abs(sum);
    for (std::int64_t i = 0; i < layer.intermediate; ++i) {
      const double product = layer.down[expert].get(r, i) * a[static_cast<std::size_t>(i)];
      sum += product;
      magnitude += std::abs(product);
    }
    output.value.push_back(sum);
    output.magnitude.push_back(magnitude);
  }
  return output;
}

struct Routing {
  Routing(std::int64_t tokens, std::int64_t top_k, std::int64_t num_experts, unsigned seed)
      : index(DType::i64, tokens, top_k), weights(DType::f32, tokens, top_k) {
    std::mt19937 generator(seed);
    index.fill([&](std::int64_t, std::int64_t) { return static_cast<double>(generator() % (num_experts + 1)); });
    weights.fill([&](std::int64_t, std::int64_t) { return static_cast<double>(generator() % 1000) / 1000; });
  }
  Matrix index, weights;
};

/// What is added is rounded to x's type once (a) and to y's type once; a's sums are those of float32.
void expect_forward(const Layer& layer, const Matrix& x, const Routing& routing, const Matrix& y) {
  const auto num_experts = static_cast<double>(layer.up.size());
  for (std::int64_t t = 0; t < x.view().rows; ++t) {
    std::vector<double> sum(static_cast<std::size_t>(layer.hidden)), magnitude(sum);
    for (std::int64_t j = 0; j < routing.index.view().cols; ++j) {
      const double id = routing.index.get(t, j);
      if (id < 0 || id >= num_experts) continue;
      const Output output = reference(layer, static_cast<std::size_t>(id), x, t);
      for (std::size_t c = 0; c < sum.size(); ++c) {
        sum[c] += routing.weights.get(t, j) * output.value[c];
        magnitude[c] += routing.weights.get(t, j) * output.magnitude[c];
      }
    }
    for (std::size_t c = 0; c < sum.size(); ++c) {
      const double bound =
          (epsilon(x.view().dtype) * 1.5 + 1e-5) * magnitude[c] + epsilon(y.view().dtype) * std::abs(sum[c]);
      ASSERT_NEAR(y.get(t, static_cast<std::int64_t>(c)), sum[c], bound + 1e-6) << "token " << t << ", column " << c;
    }
  }
}

Matrix tokens_of(DType dtype, std::int64_t tokens, std::int64_t cols, Layout layout = Layout::row_major) {
  Matrix x(dtype, tokens, cols, layout);
  std::mt19937 generator(7);
  x.fill_normal(generator);
  return x;
}

void expect_right(const Layer& layer, const Matrix& x, std::int64_t top_k, DType y_dtype = DType::f32) {
  const Routing routing(x.view().rows, top_k, static_cast<std::int64_t>(layer.up.size()), 3);
  Matrix y(y_dtype, x.view().rows, layer.hidden);
  expert_forward(x.view(), routing.index.view(), routing.weights.view(), layer.experts(), y.view());
  expect_forward(layer, x, routing, y);
}

ExpertFunction gpt_oss() {
  ExpertFunction function;
  function.is_interleaved = true;
  function.alpha = 1.702f;
  function.limit = 0.5f;
  function.up_offset = 1.0f;
  return function;
}

TEST(Experts, EveryTypeAndShape) {
  for (const DType dtype : kDtypes) {
    for (const DType x_dtype : kDtypes) {
      for (const std::int64_t hidden : {1, 31, 65}) {
        for (const std::int64_t tokens : {1, 2, 5, 40}) {
          SCOPED_TRACE(::testing::Message() << name_of(dtype) << " hidden " << hidden << ", " << tokens << " tokens of "
                                            << name_of(x_dtype));
          const Layer layer(5, hidden, hidden == 31 ? 32 : 7, dtype, {}, false);
          expect_right(layer, tokens_of(x_dtype, tokens, hidden), 3);
        }
      }
    }
  }
}

TEST(Experts, EveryFunction) {
  for (const Activation activation :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::relu_squared}) {
    for (const bool is_gated : {true, false}) {
      for (const bool has_bias : {true, false}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(activation) << is_gated << has_bias);
        ExpertFunction function;
        function.activation = activation;
        function.is_gated = is_gated;
        expect_right(Layer(4, 33, 12, DType::bf16, function, has_bias), tokens_of(DType::f32, 6, 33), 2);
      }
    }
  }
  expect_right(Layer(4, 33, 12, DType::f16, gpt_oss(), true), tokens_of(DType::f32, 6, 33), 2);
  expect_right(Layer(4, 33, 12, DType::bf16, gpt_oss(), true), tokens_of(DType::bf16, 6, 33), 2, DType::bf16);
}

TEST(Experts, StridesAndManyTokensOfOneExpert) {
  const Layer layer(1, 40, 24, DType::bf16, {}, false);
  for (const DType dtype : kDtypes) {
    for (const Layout layout : {Layout::transposed, Layout::padded_rows}) {
      expect_right(layer, tokens_of(dtype, 70, 40, layout), 1);
    }
  }
}

TEST(Experts, ThreadsChangeNothing) {
  const Layer layer(9, 260, 130, DType::bf16, {}, true);
  const Experts experts = layer.experts();
  const int before = num_threads();
  for (const std::int64_t tokens : {1, 3, 64}) {
    const Matrix x = tokens_of(DType::bf16, tokens, 260);
    const Routing routing(tokens, 4, 9, 5);
    Matrix one(DType::f32, tokens, 260), many(DType::f32, tokens, 260);
    set_num_threads(1);
    expert_forward(x.view(), routing.index.view(), routing.weights.view(), experts, one.view());
    set_num_threads(7);
    expert_forward(x.view(), routing.index.view(), routing.weights.view(), experts, many.view());
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t c = 0; c < 260; ++c) ASSERT_EQ(one.get(t, c), many.get(t, c)) << t << ' ' << c;
    }
  }
  set_num_threads(before);
}

TEST(Experts, NothingToDo) {
  const Layer layer(3, 8, 8, DType::f32, {}, false);
  const Experts experts = layer.experts();
  Matrix none(DType::f32, 0, 8), y(DType::f32, 2, 8);
  const Routing no_tokens(0, 2, 3, 1), no_choice(2, 0, 3, 1);
  expert_forward(none.view(), no_tokens.index.view(), no_tokens.weights.view(), experts, none.view());
  y.fill([](std::int64_t, std::int64_t) { return 5.0; });
  expert_forward(tokens_of(DType::f32, 2, 8).view(), no_choice.index.view(), no_choice.weights.view(), experts,
                 y.view());
  for (std::int64_t c = 0; c < 8; ++c) EXPECT_EQ(y.get(1, c), 0.0);
  Routing elsewhere(2, 1, 3, 1);
  elsewhere.index.fill([](std::int64_t t, std::int64_t) { return t == 0 ? -1.0 : 3.0; });
  y.fill([](std::int64_t, std::int64_t) { return 5.0; });
  expert_forward(tokens_of(DType::f32, 2, 8).view(), elsewhere.index.view(), elsewhere.weights.view(), experts,
                 y.view());
  for (std::int64_t c = 0; c < 8; ++c) EXPECT_EQ(y.get(0, c), 0.0);
}

TEST(Experts, RefusesWhatDoesNotFit) {
  const Layer layer(3, 8, 4, DType::f32, {}, false);
  const auto make = [&](auto&& change) {
    std::vector<ExpertWeight> up, down;
    for (std::size_t e = 0; e < 3; ++e) {
      up.emplace_back(layer.up[e].view());
      down.emplace_back(layer.down[e].view());
    }
    ExpertFunction function;
    ConstMatrixView up_bias, down_bias;
    change(up, down, function, up_bias, down_bias);
    Experts(up, down, function, up_bias, down_bias);
  };
  using Weights = std::vector<ExpertWeight>;
  const auto refused = [&](const std::string& message, auto&& change) {
    expect_error([&] { make(change); }, {message});
  };
  refused("[Experts] up must have at least one expert", [](Weights& up, auto&...) { up.clear(); });
  refused("[Experts] down must have as many experts as up, 3, got 2",
          [](Weights&, Weights& down, auto&...) { down.pop_back(); });
  refused("[Experts] down of expert 0 must be [8, 8], got [8, 4]",
          [](Weights&, Weights&, ExpertFunction& f, auto&...) { f.is_gated = false; });
  refused("[Experts] limit must be positive",
          [](Weights&, Weights&, ExpertFunction& f, auto&...) { f.limit = std::nanf(""); });
  refused("[Experts] alpha must be positive and finite",
          [](Weights&, Weights&, ExpertFunction& f, auto&...) { f.alpha = 0; });
  refused("[Experts] up_offset must be finite", [](Weights&, Weights&, ExpertFunction& f, auto&...) {
    f.up_offset = std::numeric_limits<float>::infinity();
  });
  refused("[Experts] activation must be one of those listed, got number 9",
          [](Weights&, Weights&, ExpertFunction& f, auto&...) { f.activation = static_cast<Activation>(9); });
  refused("[Experts] down_bias must be [3, 8], got [8, 8]", [&](Weights&, Weights&, ExpertFunction&, ConstMatrixView&,
                                                                ConstMatrixView& bias) { bias = layer.up[0].view(); });
  refused("[Experts] up of expert 1 must have rows of contiguous elements",
          [](Weights& up, auto&...) { std::get<ConstMatrixView>(up[1]).col_stride = 2; });

  const Experts experts = layer.experts();
  const Matrix x = tokens_of(DType::f32, 2, 8), narrow = tokens_of(DType::f32, 2, 7);
  const Routing routing(2, 2, 3, 1), other(3, 2, 3, 1), wide(2, 3, 3, 1);
  Matrix y(DType::f32, 2, 8), y_narrow(DType::f32, 2, 7);
  const auto index = routing.index.view(), weights = routing.weights.view();
  expect_error([&] { expert_forward(narrow.view(), index, weights, experts, y.view()); },
               {"[expert_forward] x must be [tokens, 8], got [2, 7]"});
  expect_error([&] { expert_forward(x.view(), index, weights, experts, y_narrow.view()); },
               {"[expert_forward] y must be [2, 8], got [2, 7]"});
  expect_error([&] { expert_forward(x.view(), other.index.view(), weights, experts, y.view()); },
               {"[expert_forward] top_k_index must have a row for each of 2 tokens, got 3"});
  expect_error([&] { expert_forward(x.view(), index, wide.weights.view(), experts, y.view()); },
               {"[expert_forward] top_k_weights must be [2, 2], got [2, 3]"});
  expect_error([&] { expert_forward(x.view(), weights, weights, experts, y.view()); },
               {"[expert_forward] top_k_index must"});
}

}  // namespace
}  // namespace stun_ext
