// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "array.hpp"
#include "stun_ext/cpu.hpp"
#include "stun_ext/cuda/runtime.hpp"
#include "stun_ext/executor.hpp"
#include "stun_ext/version.hpp"

// std::invalid_argument becomes ValueError and UnavailableError, a std::runtime_error, becomes RuntimeError: pybind11's
// own translation, which is the one we want.
PYBIND11_MODULE(_core, module) {
  namespace py = pybind11;
  module.doc() = "The compiled core of stun_ext. Private: use stun_ext.ops.";
  module.attr("__version__") = STUN_EXT_VERSION;
  stun_ext::python::register_distance(module);
  stun_ext::python::register_cluster(module);
  stun_ext::python::register_mask(module);
  stun_ext::python::register_sparse(module);
  stun_ext::python::register_cuda_mask(module);
  module.def("cpu_info", [] {
    const stun_ext::CpuInfo info = stun_ext::cpu_info();
    py::list supported;
    for (const stun_ext::Isa isa : info.supported) supported.append(stun_ext::name_of(isa));
    return py::make_tuple(info.model, info.features, supported, stun_ext::name_of(info.isa));
  });
  module.def("num_threads", &stun_ext::num_threads);
  module.def("set_num_threads", &stun_ext::set_num_threads, py::arg("count"));
  module.def("cuda_build_info", &stun_ext::cuda::build_info);
  module.def("cuda_device_count", &stun_ext::cuda::device_count);
}
