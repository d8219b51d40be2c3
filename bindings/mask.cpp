// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/mask.hpp"

#include <stdexcept>

#include "array.hpp"
#include "stun_ext/saliency.hpp"

namespace stun_ext::python {
namespace {

using BitsName = std::optional<std::string>;

/// The feature norms of Wanda as float32, or none (magnitude).
Values<float> norms_of(const char* operation, const py::object& object) {
  if (object.is_none()) return {};
  const Array array({operation, "input_sq_norm"}, object, Access::read, {1}, {Element::f32, Element::f64});
  // Without this the core would take no values as "magnitude".
  if (array.shape(0) == 0) throw std::invalid_argument(Argument{operation, "input_sq_norm"}.prefix() + "is empty");
  return Values<float>(array);
}

/// Weights to prune in each row, from a share of the row or from one count per row.
std::vector<std::int64_t> counts_of(const char* operation, const py::object& sparsity, const Array& weight) {
  if (py::isinstance<py::float_>(sparsity) || py::isinstance<py::int_>(sparsity)) {
    const auto share = sparsity.cast<double>();
    if (!(share >= 0 && share < 1)) {
      throw std::invalid_argument(Argument{operation, "sparsity"}.prefix() + "must be in [0, 1), got " +
                                  std::string(py::str(sparsity)));
    }
    return std::vector<std::int64_t>(static_cast<std::size_t>(weight.shape(0)), pruned_per_row(weight.shape(1), share));
  }
  const Array array({operation, "sparsity"}, sparsity, Access::read, {1}, {Element::i64});
  const Values<std::int64_t> values(array);
  const Span<const std::int64_t> span = values.span();
  return {span.begin(), span.end()};
}

[[noreturn]] void refuse_shape(const Argument& argument, const Array& array, const char* other, const Array& matrix) {
  const auto shape = [](const Array& of) {
    return "(" + std::to_string(of.shape(0)) + ", " + std::to_string(of.shape(1)) + ")";
  };
  throw std::invalid_argument(argument.prefix() + "must have the shape of " + other + ", " + shape(matrix) + ", got " +
                              shape(array));
}

/// Where a mask goes: a new array, or one of the caller's.
class MaskOut {
 public:
  MaskOut(const char* operation, const py::object& out, const char* other, const Array& matrix) {
    if (out.is_none()) {
      object_ = new_mask(matrix.shape(0), matrix.shape(1));
      auto array = py::reinterpret_borrow<py::array>(object_);
      view_ = mask_view_of(array);
      return;
    }
    const Argument argument = {operation, "out"};
    const Array& mask = mask_.emplace(argument, out, Access::write, Ranks{2}, Elements{Element::boolean});
    if (mask.shape(0) != matrix.shape(0) || mask.shape(1) != matrix.shape(1)) {
      refuse_shape(argument, mask, other, matrix);
    }
    if (mask.stride(1) != 1) throw std::invalid_argument(argument.prefix() + "must have contiguous rows");
    object_ = out;
    view_ = {static_cast<std::uint8_t*>(const_cast<void*>(mask.data())), mask.shape(0), mask.shape(1), mask.stride(0)};
  }

  const MaskView& view() const noexcept { return view_; }
  const py::object& object() const noexcept { return object_; }

 private:
  py::object object_;
  std::optional<Array> mask_;
  MaskView view_;
};

py::array scores(const py::object& w, const py::object& input_sq_norm, const BitsName& dtype) {
  const Array weight({"wanda_scores", "W"}, w, Access::read, {2}, kWeights, dtype);
  const Values<float> norms = norms_of("wanda_scores", input_sq_norm);
  py::array out = new_matrix(weight.shape(0), weight.shape(1), DType::f32);
  const MatrixView view = view_of(out, DType::f32);
  {
    const py::gil_scoped_release release;
    wanda_scores(weight.view(), norms.span(), view);
  }
  return out;
}

py::object mask(const py::object& w, const py::object& input_sq_norm, const py::object& sparsity, const BitsName& dtype,
                const py::object& out_object) {
  const Array weight({"wanda_mask", "W"}, w, Access::read, {2}, kWeights, dtype);
  const Values<float> norms = norms_of("wanda_mask", input_sq_norm);
  const std::vector<std::int64_t> counts = counts_of("wanda_mask", sparsity, weight);
  const MaskOut out("wanda_mask", out_object, "W", weight);
  {
    const py::gil_scoped_release release;
    wanda_mask(weight.view(), norms.span(), counts, out.view());
  }
  return out.object();
}

std::int64_t prune(const py::object& w, const py::object& input_sq_norm, const py::object& sparsity,
                   const BitsName& dtype) {
  const Array weight({"wanda_prune_", "W"}, w, Access::write, {2}, kWeights, dtype);
  const Values<float> norms = norms_of("wanda_prune_", input_sq_norm);
  const std::vector<std::int64_t> counts = counts_of("wanda_prune_", sparsity, weight);
  const py::gil_scoped_release release;
  return wanda_prune(weight.mutable_view(), norms.span(), counts);
}

py::object n_of_m(const py::object& s, std::int64_t n, std::int64_t m, const BitsName& dtype,
                  const py::object& out_object) {
  const Array array({"nm_mask", "scores"}, s, Access::read, {2}, kWeights, dtype);
  const MaskOut out("nm_mask", out_object, "scores", array);
  {
    const py::gil_scoped_release release;
    nm_mask(array.view(), n, m, out.view());
  }
  return out.object();
}

std::int64_t n_of_m_prune(const py::object& w, const py::object& input_sq_norm, std::int64_t n, std::int64_t m,
                          const BitsName& dtype) {
  const Array weight({"nm_prune_", "W"}, w, Access::write, {2}, kWeights, dtype);
  const Values<float> norms = norms_of("nm_prune_", input_sq_norm);
  const py::gil_scoped_release release;
  return nm_prune(weight.mutable_view(), norms.span(), n, m);
}

void apply(const py::object& w, const py::object& mask_object, const BitsName& dtype) {
  const Array weight({"apply_mask_", "W"}, w, Access::write, {2}, kWeights, dtype);
  const Array kept({"apply_mask_", "mask"}, mask_object, Access::read, {2}, {Element::boolean});
  const std::int64_t rows = weight.shape(0);
  const std::int64_t cols = weight.shape(1);
  if (kept.shape(0) != rows || kept.shape(1) != cols) refuse_shape({"apply_mask_", "mask"}, kept, "W", weight);
  auto* bytes = static_cast<std::uint8_t*>(const_cast<void*>(kept.data()));  // only read
  const py::gil_scoped_release release;
  const MatrixView view = weight.mutable_view();
  if (kept.stride(1) == 1) {
    apply_mask(view, {bytes, rows, cols, kept.stride(0)});
  } else if (kept.stride(0) == 1 || rows == 1) {
    // A transposed mask: the core wants its columns contiguous, and the operation does not care which way it looks.
    const MatrixView transposed = {view.data, cols, rows, view.col_stride, view.row_stride, view.dtype};
    apply_mask(transposed, {bytes, cols, rows, kept.stride(1)});
  } else {
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(rows * cols));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        packed[static_cast<std::size_t>(r * cols + c)] = bytes[r * kept.stride(0) + c * kept.stride(1)];
      }
    }
    apply_mask(view, {packed.data(), rows, cols, cols});
  }
}

}  // namespace

void register_mask(py::module_& module) {
  module.def("wanda_scores", &scores, py::arg("W"), py::arg("input_sq_norm"), py::arg("dtype"));
  module.def("wanda_mask", &mask, py::arg("W"), py::arg("input_sq_norm"), py::arg("sparsity"), py::arg("dtype"),
             py::arg("out"));
  module.def("wanda_prune_", &prune, py::arg("W"), py::arg("input_sq_norm"), py::arg("sparsity"), py::arg("dtype"));
  module.def("nm_mask", &n_of_m, py::arg("scores"), py::arg("n"), py::arg("m"), py::arg("dtype"), py::arg("out"));
  module.def("nm_prune_", &n_of_m_prune, py::arg("W"), py::arg("input_sq_norm"), py::arg("n"), py::arg("m"),
             py::arg("dtype"));
  module.def("apply_mask_", &apply, py::arg("W"), py::arg("mask"), py::arg("dtype"));
}

}  // namespace stun_ext::python
