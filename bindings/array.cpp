// SPDX-License-Identifier: Apache-2.0
#include "array.hpp"

#include <algorithm>
#include <stdexcept>

#include "dlpack.hpp"

namespace stun_ext::python {
namespace {

std::size_t size_of(Element element) noexcept {
  switch (element) {
    case Element::f64:
    case Element::i64:
      return 8;
    case Element::f32:
      return 4;
    case Element::f16:
    case Element::bf16:
      return 2;
    case Element::boolean:
      return 1;
  }
  return 1;
}

DType dtype_of(Element element) {
  switch (element) {
    case Element::f32:
      return DType::f32;
    case Element::f16:
      return DType::f16;
    case Element::bf16:
      return DType::bf16;
    case Element::f64:
      return DType::f64;
    case Element::i64:
      return DType::i64;
    case Element::boolean:
      break;
  }
  throw std::logic_error("a mask is no matrix of numbers");
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  }
  return text;
}

[[noreturn]] void refuse_alignment(const Argument& argument) {
  throw std::invalid_argument(argument.prefix() +
                              "must be aligned to whole elements, got misaligned memory (use array.copy())");
}

std::string type_name(const py::object& object) { return py::str(py::type::of(object).attr("__name__")); }

/// The element type of a NumPy dtype, or none. ml_dtypes' bfloat16 is known by its name, so it need not be imported.
std::optional<Element> element_of(const py::dtype& dtype, const std::string& name, bool bits) {
  const auto kind = dtype.kind();
  const auto size = dtype.itemsize();
  if (kind == 'f' && size == 4) return Element::f32;
  if (kind == 'f' && size == 8) return Element::f64;
  if (kind == 'f' && size == 2) return Element::f16;
  if (kind == 'i' && size == 8) return Element::i64;
  if (kind == 'b') return Element::boolean;
  if (kind == 'u' && size == 2 && bits) return Element::bf16;
  if (size == 2 && name == "bfloat16") return Element::bf16;
  return std::nullopt;
}

std::optional<Element> element_of(dlpack::DataType dtype, bool bits) {
  if (dtype.lanes != 1) return std::nullopt;
  if (dtype.code == dlpack::kFloat && dtype.bits == 32) return Element::f32;
  if (dtype.code == dlpack::kFloat && dtype.bits == 64) return Element::f64;
  if (dtype.code == dlpack::kFloat && dtype.bits == 16) return Element::f16;
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return Element::bf16;
  if (dtype.code == dlpack::kInt && dtype.bits == 64) return Element::i64;
  if (dtype.code == dlpack::kBool && dtype.bits == 8) return Element::boolean;
  if (dtype.code == dlpack::kUInt && dtype.bits == 16 && bits) return Element::bf16;
  return std::nullopt;
}

std::string name_of(dlpack::DataType dtype) {
  const char* code = dtype.code == dlpack::kInt      ? "int"
                     : dtype.code == dlpack::kUInt   ? "uint"
                     : dtype.code == dlpack::kFloat  ? "float"
                     : dtype.code == dlpack::kBfloat ? "bfloat"
                     : dtype.code == dlpack::kBool   ? "bool"
                                                     : "DLPack type ";
  std::string name = code;
  if (dtype.code == dlpack::kBool) return name;
  if (name.back() == ' ') name += std::to_string(dtype.code) + ":";
  name += std::to_string(dtype.bits);
  if (dtype.lanes != 1) name += "x" + std::to_string(dtype.lanes);
  return name;
}

void check_device(const Argument& argument, std::int32_t type, Place place) {
  const bool is_host = type == dlpack::kCpu || type == dlpack::kCudaHost;
  if (place == Place::host ? is_host : type == dlpack::kCuda) return;
  throw std::invalid_argument(argument.prefix() + "must be in " + (place == Place::host ? "host" : "CUDA device") +
                              " memory, got DLPack device type " + std::to_string(type));
}

/// Asks for a versioned capsule (it can say "read-only"); producers older than DLPack 1.0 do not know the keyword.
py::object export_capsule(const py::object& object, Place place) {
  const py::object method = object.attr("__dlpack__");
  py::dict arguments;
  if (place == Place::cuda) arguments["stream"] = -1;  // no synchronisation
  try {
    return method(**arguments, py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**arguments);
}

template <class Managed>
std::shared_ptr<Managed> adopt(PyObject* capsule, const char* name, const char* used_name) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  if (managed == nullptr) throw py::error_already_set();
  // From here on the tensor is ours: the renamed capsule no longer runs the deleter, our pointer does, once.
  if (PyCapsule_SetName(capsule, used_name) != 0) throw py::error_already_set();
  return std::shared_ptr<Managed>(managed, [](Managed* m) {
    if (m->deleter != nullptr) m->deleter(m);
  });
}

}  // namespace

std::string Argument::prefix() const { return std::string("[") + operation + "] " + name + " "; }

const char* name_of(Element element) noexcept {
  switch (element) {
    case Element::f32:
      return "float32";
    case Element::f16:
      return "float16";
    case Element::bf16:
      return "bfloat16";
    case Element::f64:
      return "float64";
    case Element::i64:
      return "int64";
    case Element::boolean:
      return "bool";
  }
  return "unknown";
}

Array::Array(const Argument& argument, const py::object& object, Access access, Ranks ranks, Elements elements,
             const std::optional<std::string>& dtype, Place place) {
  if (dtype && *dtype != "bfloat16") {
    throw std::invalid_argument(std::string("[") + argument.operation + "] dtype must be None or \"bfloat16\", got \"" +
                                *dtype + "\"");
  }
  if (place == Place::host && py::isinstance<py::array>(object)) {
    take_numpy(argument, py::reinterpret_borrow<py::array>(object), elements, dtype.has_value());
  } else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
    take_dlpack(argument, object, elements, dtype.has_value(), place);
  } else {
    throw py::type_error(argument.prefix() + "must be a NumPy array or a tensor with __dlpack__, got " +
                         type_name(object));
  }
  if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) {
    std::vector<std::string> legal;
    for (const int rank : ranks) legal.push_back(std::to_string(rank));
    const bool one = legal.size() == 1 && ranks.begin()[0] == 1;
    throw std::invalid_argument(argument.prefix() + "must have " + join(legal) + (one ? " dimension" : " dimensions") +
                                ", got " + std::to_string(rank_));
  }
  if (dtype && element_ != Element::bf16) {
    throw py::type_error(argument.prefix() + "must hold bfloat16 bits as uint16 with dtype=\"bfloat16\", got " +
                         name_of(element_));
  }
  if (access == Access::write && !writable_) {
    throw std::invalid_argument(argument.prefix() + "must be writable to be changed in place, got a read-only array");
  }
}

void Array::take_numpy(const Argument& argument, const py::array& array, Elements elements, bool bits) {
  const py::dtype dtype = array.dtype();
  const std::string name = py::str(dtype.attr("name"));
  set_element(argument, element_of(dtype, name, bits), elements, name);
  if (!dtype.attr("isnative").cast<bool>()) {
    throw std::invalid_argument(argument.prefix() + "must be in native byte order (use array.astype(array.dtype." +
                                "newbyteorder('=')))");
  }
  set_rank(static_cast<std::int64_t>(array.ndim()));
  const auto item = static_cast<std::int64_t>(size_of(element_));
  for (int axis = 0; axis < std::min(rank_, 2); ++axis) {
    const auto i = static_cast<std::size_t>(axis);
    shape_[i] = array.shape(axis);
    const auto bytes = static_cast<std::int64_t>(array.strides(axis));
    if (shape_[i] > 1 && bytes % item != 0) refuse_alignment(argument);
    strides_[i] = bytes / item;
  }
  set_unused_strides();
  if (reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::uintptr_t>(item) != 0) {
    refuse_alignment(argument);
  }
  data_ = const_cast<void*>(array.data());
  writable_ = array.writeable();
  numpy_ = array;
}

void Array::take_dlpack(const Argument& argument, const py::object& object, Elements elements, bool bits, Place place) {
  check_device(argument, object.attr("__dlpack_device__")()[py::int_(0)].cast<std::int32_t>(), place);
  const py::object capsule = export_capsule(object, place);
  const dlpack::Tensor* tensor = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto managed =
        adopt<dlpack::ManagedTensorVersioned>(capsule.ptr(), "dltensor_versioned", "used_dltensor_versioned");
    if (managed->version.major != 1) {
      throw std::invalid_argument(argument.prefix() + "must be exported as DLPack 1, got version " +
                                  std::to_string(managed->version.major));
    }
    tensor = &managed->tensor;
    writable_ = (managed->flags & dlpack::kReadOnly) == 0;
    exported_ = std::move(managed);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto managed = adopt<dlpack::ManagedTensor>(capsule.ptr(), "dltensor", "used_dltensor");
    tensor = &managed->tensor;
    writable_ = true;  // the old protocol cannot say otherwise
    exported_ = std::move(managed);
  } else {
    throw py::type_error(argument.prefix() + "must return an unused DLPack capsule from __dlpack__");
  }
  check_device(argument, tensor->device.type, place);
  device_ = tensor->device.id;
  set_element(argument, element_of(tensor->dtype, bits), elements, name_of(tensor->dtype));
  set_rank(tensor->ndim);
  for (int axis = std::min(rank_, 2) - 1; axis >= 0; --axis) {
    const auto i = static_cast<std::size_t>(axis);
    shape_[i] = tensor->shape[axis];
    const std::int64_t compact = axis == 0 && rank_ == 2 ? shape_[1] : 1;
    strides_[i] = tensor->strides != nullptr ? tensor->strides[axis] : compact;
  }
  set_unused_strides();
  data_ = static_cast<char*>(tensor->data) + tensor->byte_offset;
  if (reinterpret_cast<std::uintptr_t>(data_) % size_of(element_) != 0) refuse_alignment(argument);
}

void Array::set_element(const Argument& argument, std::optional<Element> element, Elements elements,
                        const std::string& name) {
  if (element && std::find(elements.begin(), elements.end(), *element) != elements.end()) {
    element_ = *element;
    return;
  }
  std::vector<std::string> legal;
  for (const Element e : elements) legal.emplace_back(name_of(e));
  const bool bits = name == "uint16" && std::find(elements.begin(), elements.end(), Element::bf16) != elements.end();
  throw py::type_error(argument.prefix() + "must have dtype " + join(legal) + ", got " + name +
                       (bits ? " (bfloat16 bits need dtype=\"bfloat16\")" : ""));
}

void Array::set_rank(std::int64_t rank) {
  rank_ = static_cast<int>(rank);
  if (rank_ == 0) shape_ = {1, 1};
}

void Array::set_unused_strides() {
  // Producers leave the stride of an axis with one element or none to chance.
  if (rank_ < 2 || shape_[1] <= 1) strides_[1] = 1;
  if (shape_[0] <= 1) strides_[0] = rank_ < 2 ? 1 : shape_[1];
}

ConstMatrixView Array::view() const {
  return {data_, shape_[0], shape_[1], strides_[0], strides_[1], dtype_of(element_)};
}

MatrixView Array::mutable_view() const {
  return {data_, shape_[0], shape_[1], strides_[0], strides_[1], dtype_of(element_)};
}

template <class T>
Values<T>::Values(const Array& array) : size_(static_cast<std::size_t>(array.shape(0))) {
  constexpr Element own = std::is_same_v<T, float>    ? Element::f32
                          : std::is_same_v<T, double> ? Element::f64
                                                      : Element::i64;
  if (array.element() == own && (size_ <= 1 || array.stride(0) == 1)) {
    data_ = static_cast<const T*>(array.data());
    return;
  }
  copy_.resize(size_);
  const auto gather = [&](const auto* from) {
    for (std::size_t i = 0; i < size_; ++i) {
      copy_[i] = static_cast<T>(from[static_cast<std::int64_t>(i) * array.stride(0)]);
    }
  };
  switch (array.element()) {
    case Element::f32:
      gather(static_cast<const float*>(array.data()));
      break;
    case Element::f64:
      gather(static_cast<const double*>(array.data()));
      break;
    case Element::i64:
      gather(static_cast<const std::int64_t*>(array.data()));
      break;
    default:
      throw std::logic_error("values are float32, float64 or int64");
  }
  data_ = copy_.data();
}

template class Values<float>;
template class Values<double>;
template class Values<std::int64_t>;

py::array new_matrix(std::int64_t rows, std::int64_t cols, DType dtype) {
  const std::vector<py::ssize_t> shape = {rows, cols};
  return dtype == DType::f64 ? py::array(py::dtype::of<double>(), shape) : py::array(py::dtype::of<float>(), shape);
}

MatrixView view_of(py::array& matrix, DType dtype) {
  return {matrix.mutable_data(), matrix.shape(0), matrix.shape(1), matrix.shape(1), 1, dtype};
}

py::array new_mask(std::int64_t rows, std::int64_t cols) {
  const std::vector<py::ssize_t> shape = {rows, cols};
  return py::array(py::dtype::of<bool>(), shape);
}

MaskView mask_view_of(py::array& mask) {
  return {static_cast<std::uint8_t*>(mask.mutable_data()), mask.shape(0), mask.shape(1), mask.shape(1)};
}

py::array_t<std::int64_t> new_labels(std::int64_t count) { return py::array_t<std::int64_t>(count); }

Span<std::int64_t> span_of(py::array_t<std::int64_t>& labels) {
  return {labels.mutable_data(), static_cast<std::size_t>(labels.size())};
}

}  // namespace stun_ext::python
