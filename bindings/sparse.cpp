// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/sparse.hpp"

#include <memory>
#include <stdexcept>
#include <utility>

#include "array.hpp"
#include "openmp_executor.hpp"
#include "stun_ext/experts.hpp"
#include "stun_ext/matmul.hpp"

namespace stun_ext::python {
namespace {

using BitsName = std::optional<std::string>;

/// A packed matrix, and the arrays whose memory it reads where that is not its own.
struct Packed {
  PackedMatrix matrix;
  py::object values, masks;
};

DType dtype_named(const char* operation, const std::string& name) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    if (name == stun_ext::name_of(dtype)) return dtype;
  }
  throw std::invalid_argument(std::string("[") + operation +
                              "] dtype must be \"float32\", \"float16\" or \"bfloat16\", got \"" + name + "\"");
}

/// A contiguous one-dimensional NumPy array of exactly this element type.
template <class T>
Span<const T> span_of(const Argument& argument, const py::object& object) {
  if (!py::isinstance<py::array_t<T>>(object)) {
    throw py::type_error(argument.prefix() + "must be a NumPy array of " + std::string(py::str(py::dtype::of<T>())) +
                         ", got " + std::string(py::str(py::type::of(object).attr("__name__"))));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != 1 || (array.size() > 1 && array.strides(0) != static_cast<py::ssize_t>(sizeof(T)))) {
    throw std::invalid_argument(argument.prefix() + "must be one-dimensional and contiguous");
  }
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

Packed pack_array(const py::object& w, const BitsName& dtype) {
  const Array weight({"pack", "W"}, w, Access::read, {2}, kWeights, dtype);
  const py::gil_scoped_release release;
  return {pack(weight.view()), {}, {}};
}

Packed from_buffers(std::int64_t rows, std::int64_t cols, const std::string& dtype, const py::object& values,
                    const py::object& masks) {
  constexpr const char* kOperation = "from_buffers";
  const DType type = dtype_named(kOperation, dtype);
  const Span<const std::uint8_t> bytes = span_of<std::uint8_t>({kOperation, "values"}, values);
  const Span<const std::uint32_t> bits = span_of<std::uint32_t>({kOperation, "masks"}, masks);
  const Span<const std::byte> value_bytes(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size());
  Packed packed{{}, values, masks};
  const py::gil_scoped_release release;
  packed.matrix = PackedMatrix::from_buffers(rows, cols, type, value_bytes, bits);
  return packed;
}

/// One of the buffers as a read-only array that keeps the matrix alive.
template <class T>
py::array buffer_of(const py::object& self, const T* data, std::size_t size) {
  py::array_t<T> array(static_cast<py::ssize_t>(size), data, self);
  array.attr("flags").attr("writeable") = false;
  return array;
}

void unpack_array(const Packed& packed, const py::object& out, const BitsName& dtype) {
  const Array weight({"unpack", "out"}, out, Access::write, {2}, kWeights, dtype);
  const py::gil_scoped_release release;
  unpack(packed.matrix, weight.mutable_view());
}

void multiply_packed(const py::object& x, const Packed& packed, const py::object& out, const BitsName& dtype) {
  const Array tokens({"packed_matmul", "x"}, x, Access::read, {2}, kWeights, dtype);
  const Array result({"packed_matmul", "out"}, out, Access::write, {2}, kWeights, dtype);
  const py::gil_scoped_release release;
  packed_matmul(tokens.view(), packed.matrix, result.mutable_view(), openmp_executor());
}

void multiply_dense(const py::object& x, const py::object& w, const py::object& out, const BitsName& dtype) {
  const Array tokens({"dense_matmul", "x"}, x, Access::read, {2}, kWeights, dtype);
  const Array weight({"dense_matmul", "W"}, w, Access::read, {2}, kWeights, dtype);
  const Array result({"dense_matmul", "out"}, out, Access::write, {2}, kWeights, dtype);
  const py::gil_scoped_release release;
  dense_matmul(tokens.view(), weight.view(), result.mutable_view(), openmp_executor());
}

/// The experts of a layer, and what their weights lie in.
struct Layer {
  std::vector<Array> arrays;
  std::vector<py::object> packed;
  std::unique_ptr<Experts> experts;
};

const std::pair<const char*, Activation> kActivations[] = {{"silu", Activation::silu},
                                                           {"gelu", Activation::gelu},
                                                           {"gelu_tanh", Activation::gelu_tanh},
                                                           {"relu", Activation::relu},
                                                           {"relu_squared", Activation::relu_squared}};

Activation activation_named(const std::string& name) {
  for (const auto& [known, activation] : kActivations) {
    if (name == known) return activation;
  }
  throw std::invalid_argument(
      "[Experts] activation must be \"silu\", \"gelu\", \"gelu_tanh\", \"relu\" or \"relu_squared\", got \"" + name +
      "\"");
}

std::vector<ExpertWeight> weights_of(const char* name, const py::list& matrices, const BitsName& dtype, Layer& layer) {
  std::vector<ExpertWeight> weights;
  for (const py::handle& handle : matrices) {
    const auto matrix = py::reinterpret_borrow<py::object>(handle);
    if (py::isinstance<Packed>(matrix)) {
      weights.emplace_back(matrix.cast<const Packed&>().matrix);
      layer.packed.push_back(matrix);
    } else {
      layer.arrays.emplace_back(Argument{"Experts", name}, matrix, Access::read, Ranks{2}, kWeights, dtype);
      weights.emplace_back(layer.arrays.back().view());
    }
  }
  return weights;
}

ConstMatrixView bias_of(const char* name, const py::object& bias, const BitsName& dtype, Layer& layer) {
  if (bias.is_none()) return {};
  layer.arrays.emplace_back(Argument{"Experts", name}, bias, Access::read, Ranks{2}, kWeights, dtype);
  return layer.arrays.back().view();
}

std::unique_ptr<Layer> make_layer(const py::list& up, const py::list& down, const std::string& activation,
                                  bool is_gated, bool is_interleaved, float alpha, float limit, float up_offset,
                                  const py::object& up_bias, const py::object& down_bias, const BitsName& dtype) {
  auto layer = std::make_unique<Layer>();
  ExpertFunction function;
  function.activation = activation_named(activation);
  function.is_gated = is_gated;
  function.is_interleaved = is_interleaved;
  function.alpha = alpha;
  function.limit = limit;
  function.up_offset = up_offset;
  std::vector<ExpertWeight> of_up = weights_of("up", up, dtype, *layer);
  std::vector<ExpertWeight> of_down = weights_of("down", down, dtype, *layer);
  const ConstMatrixView of_up_bias = bias_of("up_bias", up_bias, dtype, *layer);
  layer->experts = std::make_unique<Experts>(std::move(of_up), std::move(of_down), function, of_up_bias,
                                             bias_of("down_bias", down_bias, dtype, *layer));
  return layer;
}

void forward(const py::object& x, const py::object& top_k_index, const py::object& top_k_weights, const Layer& layer,
             const py::object& out, const BitsName& dtype) {
  constexpr const char* kOperation = "expert_forward";
  const Array tokens({kOperation, "x"}, x, Access::read, {2}, kWeights, dtype);
  const Array index({kOperation, "top_k_index"}, top_k_index, Access::read, {2}, {Element::i64});
  const Array weights({kOperation, "top_k_weights"}, top_k_weights, Access::read, {2}, kWeights);
  const Array result({kOperation, "out"}, out, Access::write, {2}, kWeights, dtype);
  const py::gil_scoped_release release;
  expert_forward(tokens.view(), index.view(), weights.view(), *layer.experts, result.mutable_view(), openmp_executor());
}

}  // namespace

void register_sparse(py::module_& module) {
  py::class_<Packed>(module, "PackedMatrix")
      .def_property_readonly("shape", [](const Packed& p) { return py::make_tuple(p.matrix.rows(), p.matrix.cols()); })
      .def_property_readonly("dtype", [](const Packed& p) { return stun_ext::name_of(p.matrix.dtype()); })
      .def_property_readonly("nnz", [](const Packed& p) { return p.matrix.nnz(); })
      .def_property_readonly("values",
                             [](const py::object& self) {
                               const Span<const std::byte> values = self.cast<const Packed&>().matrix.values();
                               return buffer_of(self, reinterpret_cast<const std::uint8_t*>(values.data()),
                                                values.size());
                             })
      .def_property_readonly("masks", [](const py::object& self) {
        const Span<const std::uint32_t> masks = self.cast<const Packed&>().matrix.masks();
        return buffer_of(self, masks.data(), masks.size());
      });
  py::class_<Layer>(module, "Experts")
      .def(py::init(&make_layer), py::arg("up"), py::arg("down"), py::arg("activation"), py::arg("is_gated"),
           py::arg("is_interleaved"), py::arg("alpha"), py::arg("limit"), py::arg("up_offset"), py::arg("up_bias"),
           py::arg("down_bias"), py::arg("dtype"))
      .def_property_readonly("hidden_size", [](const Layer& layer) { return layer.experts->hidden_size(); })
      .def_property_readonly("intermediate_size", [](const Layer& layer) { return layer.experts->intermediate_size(); })
      .def_property_readonly("num_experts", [](const Layer& layer) { return layer.experts->num_experts(); });
  module.def("expert_forward", &forward, py::arg("x"), py::arg("top_k_index"), py::arg("top_k_weights"),
             py::arg("experts"), py::arg("out"), py::arg("dtype"));
  module.def("pack", &pack_array, py::arg("W"), py::arg("dtype"));
  module.def("packed_from_buffers", &from_buffers, py::arg("rows"), py::arg("cols"), py::arg("dtype"),
             py::arg("values"), py::arg("masks"));
  module.def("unpack", &unpack_array, py::arg("packed"), py::arg("out"), py::arg("dtype"));
  module.def("packed_matmul", &multiply_packed, py::arg("x"), py::arg("packed"), py::arg("out"), py::arg("dtype"));
  module.def("dense_matmul", &multiply_dense, py::arg("x"), py::arg("W"), py::arg("out"), py::arg("dtype"));
}

}  // namespace stun_ext::python
