// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>  // in every file alike: it specialises casters

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "stun_ext/cluster.hpp"
#include "stun_ext/mask.hpp"
#include "stun_ext/view.hpp"

/// How Python arrays reach the core: as views of their own memory, never as copies, except the one-dimensional
/// arguments whose header asks for a contiguous Span (see the functions below).
namespace stun_ext::python {

namespace py = pybind11;

/// Which argument of which operation an error message is about.
struct Argument {
  const char* operation;
  const char* name;

  /// "[operation] name "
  std::string prefix() const;
};

/// What one element of a Python array is.
enum class Element : std::uint8_t { f32, f16, bf16, f64, i64, boolean };

const char* name_of(Element element) noexcept;

using Elements = std::initializer_list<Element>;
using Ranks = std::initializer_list<int>;

/// Frequent sets of legal element types.
inline constexpr Elements kWeights = {Element::f32, Element::f16, Element::bf16};
inline constexpr Elements kRows = {Element::f32, Element::f16, Element::bf16, Element::f64};
inline constexpr Elements kDistances = {Element::f32, Element::f64};
inline constexpr Elements kCounts = {Element::f32, Element::f64, Element::i64};

enum class Access : std::uint8_t { read, write };

/// Whose memory an array lies in. A CUDA array is taken without synchronising: it must be ready for whatever stream the
/// operation is queued on.
enum class Place : std::uint8_t { host, cuda };

/// A one- or two-dimensional array that is kept alive, and seen without a copy.
///
/// Made from a NumPy array, or from any object with `__dlpack__` at the place. Needs the GIL to be made and destroyed,
/// not to be read.
class Array {
 public:
  /// @param dtype  "bfloat16" if the array holds bfloat16 bits as uint16, else none.
  /// @throws py::type_error on objects that are no arrays and on illegal element types; std::invalid_argument
  ///         (ValueError) on other ranks, on other devices, on misaligned or byte-swapped memory, and, for
  ///         Access::write, on read-only memory.
  Array(const Argument& argument, const py::object& object, Access access, Ranks ranks, Elements elements,
        const std::optional<std::string>& dtype = std::nullopt, Place place = Place::host);

  /// Its number, for Place::cuda.
  int device() const noexcept { return device_; }
  int rank() const noexcept { return rank_; }
  std::int64_t shape(int axis) const noexcept { return shape_[static_cast<std::size_t>(axis)]; }
  std::int64_t stride(int axis) const noexcept { return strides_[static_cast<std::size_t>(axis)]; }
  Element element() const noexcept { return element_; }
  const void* data() const noexcept { return data_; }

  /// Two-dimensional arrays of anything but bool. `mutable_view` needs Access::write.
  ConstMatrixView view() const;
  MatrixView mutable_view() const;

 private:
  void take_numpy(const Argument& argument, const py::array& array, Elements elements, bool bits);
  void take_dlpack(const Argument& argument, const py::object& object, Elements elements, bool bits, Place place);
  void set_element(const Argument& argument, std::optional<Element> element, Elements elements,
                   const std::string& name);
  void set_rank(std::int64_t rank);
  void set_unused_strides();

  py::object numpy_;                // owner, if NumPy
  std::shared_ptr<void> exported_;  // owner, if DLPack: runs the producer's deleter
  void* data_ = nullptr;
  int device_ = 0;
  int rank_ = 0;
  Element element_ = Element::f32;
  bool writable_ = false;
  std::array<std::int64_t, 2> shape_ = {0, 1};
  std::array<std::int64_t, 2> strides_ = {0, 1};  // in elements
};

/// A one-dimensional argument as the contiguous values that the core asks for: the array's own memory where it is
/// contiguous and of that type already, else a converted copy (such arguments are one row or one column long).
template <class T>
class Values {
 public:
  /// No values at all.
  Values() = default;
  Values(Values&&) noexcept = default;  // never copied: data_ may point into copy_
  /// @param array  one-dimensional, float32 or float64 (T floating) or int64 (T integer).
  explicit Values(const Array& array);

  Span<const T> span() const noexcept { return {data_, size_}; }

 private:
  std::vector<T> copy_;
  const T* data_ = nullptr;
  std::size_t size_ = 0;
};

extern template class Values<float>;
extern template class Values<double>;
extern template class Values<std::int64_t>;

/// A new C-contiguous NumPy array, and the view the core fills.
py::array new_matrix(std::int64_t rows, std::int64_t cols, DType dtype);
MatrixView view_of(py::array& matrix, DType dtype);
py::array new_mask(std::int64_t rows, std::int64_t cols);
MaskView mask_view_of(py::array& mask);
py::array_t<std::int64_t> new_labels(std::int64_t count);
Span<std::int64_t> span_of(py::array_t<std::int64_t>& labels);

/// Adds the functions of one header group to the module.
void register_distance(py::module_& module);
void register_cluster(py::module_& module);
void register_mask(py::module_& module);
void register_sparse(py::module_& module);
void register_cuda_mask(py::module_& module);

}  // namespace stun_ext::python
