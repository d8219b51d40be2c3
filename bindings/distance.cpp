// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/distance.hpp"

#include "array.hpp"

namespace stun_ext::python {
namespace {

using BitsName = std::optional<std::string>;

py::array pairwise(const py::object& x, bool divide_by_frobenius, const BitsName& dtype) {
  const Array rows({"pairwise_distances", "X"}, x, Access::read, {2}, kRows, dtype);
  py::array out = new_matrix(rows.shape(0), rows.shape(0), DType::f32);
  const MatrixView view = view_of(out, DType::f32);
  {
    const py::gil_scoped_release release;
    pairwise_distances(rows.view(), divide_by_frobenius, view);
  }
  return out;
}

py::array coactivation(const py::object& a) {
  const Array counts({"coactivation_distances", "A"}, a, Access::read, {2}, kCounts);
  py::array out = new_matrix(counts.shape(0), counts.shape(0), DType::f32);
  const MatrixView view = view_of(out, DType::f32);
  {
    const py::gil_scoped_release release;
    coactivation_distances(counts.view(), view);
  }
  return out;
}

py::array mixed(const py::object& x, const py::object& a, double mix, bool divide_by_frobenius, const BitsName& dtype) {
  const Array rows({"mixed_distances", "X"}, x, Access::read, {2}, kRows, dtype);
  const Array counts({"mixed_distances", "A"}, a, Access::read, {2}, kCounts);
  py::array out = new_matrix(rows.shape(0), rows.shape(0), DType::f32);
  const MatrixView view = view_of(out, DType::f32);
  {
    const py::gil_scoped_release release;
    mixed_distances(rows.view(), counts.view(), mix, divide_by_frobenius, view);
  }
  return out;
}

}  // namespace

void register_distance(py::module_& module) {
  module.def("pairwise_distances", &pairwise, py::arg("X"), py::arg("divide_by_frobenius"), py::arg("dtype"));
  module.def("coactivation_distances", &coactivation, py::arg("A"));
  module.def("mixed_distances", &mixed, py::arg("X"), py::arg("A"), py::arg("mix"), py::arg("divide_by_frobenius"),
             py::arg("dtype"));
}

}  // namespace stun_ext::python
