// SPDX-License-Identifier: Apache-2.0
#include "array.hpp"
#include "stun_ext/cuda/mask.hpp"

namespace stun_ext::python {
namespace {

// The matrix comes as it is, by DLPack. What stun_ext.ops makes for it on its device (norms, counts, a mask without
// gaps, a status) and the stream come as addresses, 0 for none: to export a tensor takes longer than to prune a small
// matrix.
using Address = std::uintptr_t;

Array device_array(const char* operation, const char* name, const py::object& object, Access access) {
  return Array({operation, name}, object, access, {2}, kWeights, std::nullopt, Place::cuda);
}

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cuda::Stream stream_of(Address stream, const Array& weight) { return {at<void>(stream), weight.device()}; }

MaskView mask_of(Address mask, const Array& weight) {
  return {at<std::uint8_t>(mask), weight.shape(0), weight.shape(1), weight.shape(1)};
}

void mask(const py::object& w, Address norms, std::int64_t each, Address counts, Address out, Address status,
          Address stream) {
  const Array weight = device_array("wanda_mask", "W", w, Access::read);
  const py::gil_scoped_release release;
  cuda::wanda_mask(weight.view(), at<const float>(norms), {each, at<const std::int64_t>(counts)}, mask_of(out, weight),
                   at<cuda::MaskStatus>(status), stream_of(stream, weight));
}

void prune(const py::object& w, Address norms, std::int64_t each, Address counts, Address status, Address stream) {
  const Array weight = device_array("wanda_prune_", "W", w, Access::write);
  const py::gil_scoped_release release;
  cuda::wanda_prune(weight.mutable_view(), at<const float>(norms), {each, at<const std::int64_t>(counts)},
                    at<cuda::MaskStatus>(status), stream_of(stream, weight));
}

void n_of_m(const py::object& s, std::int64_t n, std::int64_t m, Address out, Address status, Address stream) {
  const Array scores = device_array("nm_mask", "scores", s, Access::read);
  const py::gil_scoped_release release;
  cuda::nm_mask(scores.view(), n, m, mask_of(out, scores), at<cuda::MaskStatus>(status), stream_of(stream, scores));
}

void n_of_m_prune(const py::object& w, Address norms, std::int64_t n, std::int64_t m, Address status, Address stream) {
  const Array weight = device_array("nm_prune_", "W", w, Access::write);
  const py::gil_scoped_release release;
  cuda::nm_prune(weight.mutable_view(), at<const float>(norms), n, m, at<cuda::MaskStatus>(status),
                 stream_of(stream, weight));
}

/// @param status  the four numbers of a MaskStatus, as int64.
void throw_if_illegal(const std::string& operation, const std::string& name, const std::array<std::int64_t, 4>& status,
                      std::int64_t rows, std::int64_t cols, bool only_nan) {
  const auto place = [&](std::size_t i) { return static_cast<std::uint64_t>(status[i]); };
  cuda::throw_if_illegal(operation.c_str(), name.c_str(), {status[0], place(1), place(2), place(3)}, rows, cols,
                         only_nan);
}

}  // namespace

void register_cuda_mask(py::module_& module) {
  module.attr("CUDA_MOST_COLUMNS") = cuda::kMostColumns;
  module.def("cuda_wanda_mask", &mask, py::arg("W"), py::arg("input_sq_norm"), py::arg("each"), py::arg("counts"),
             py::arg("mask"), py::arg("status"), py::arg("stream"));
  module.def("cuda_wanda_prune_", &prune, py::arg("W"), py::arg("input_sq_norm"), py::arg("each"), py::arg("counts"),
             py::arg("status"), py::arg("stream"));
  module.def("cuda_nm_mask", &n_of_m, py::arg("scores"), py::arg("n"), py::arg("m"), py::arg("mask"), py::arg("status"),
             py::arg("stream"));
  module.def("cuda_nm_prune_", &n_of_m_prune, py::arg("W"), py::arg("input_sq_norm"), py::arg("n"), py::arg("m"),
             py::arg("status"), py::arg("stream"));
  module.def("cuda_throw_if_illegal", &throw_if_illegal, py::arg("operation"), py::arg("name"), py::arg("status"),
             py::arg("rows"), py::arg("cols"), py::arg("only_nan") = false);
}

}  // namespace stun_ext::python
