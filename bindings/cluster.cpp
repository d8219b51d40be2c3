// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/cluster.hpp"

#include <cstring>
#include <stdexcept>

#include "array.hpp"
#include "stun_ext/allocation.hpp"

namespace stun_ext::python {
namespace {

static_assert(sizeof(Merge) == 4 * sizeof(double), "a merge is one row of SciPy's Z");

Linkage parse_method(const std::string& name) {
  if (name == "single") return Linkage::single;
  if (name == "complete") return Linkage::complete;
  if (name == "average") return Linkage::average;
  if (name == "ward") return Linkage::ward;
  if (name == "centroid") return Linkage::centroid;
  throw std::invalid_argument("[linkage] method must be single, complete, average, ward or centroid, got \"" + name +
                              "\"");
}

/// Calls a Python callable with the fraction done, or none; lets Ctrl-C and its exceptions end the run.
class PythonProgress final : public Progress {
 public:
  explicit PythonProgress(py::object callable) : callable_(std::move(callable)) {}

  bool update(double fraction) override {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (callable_.is_none()) return true;
    const py::object answer = callable_(fraction);
    return answer.is_none() || answer.cast<bool>();
  }

 private:
  py::object callable_;
};

py::array linkage_matrix(const py::object& y, const std::string& method_name, const std::optional<std::string>& dtype,
                         std::int64_t memory_limit, std::int64_t n_clusters, std::optional<double> height,
                         const py::object& progress) {
  const Linkage method = parse_method(method_name);
  const Array array({"linkage", "Y"}, y, Access::read, {1, 2}, kRows, dtype);
  if (array.rank() == 1 && (array.element() == Element::f16 || array.element() == Element::bf16)) {
    throw py::type_error(std::string("[linkage] condensed Y must have dtype float32 or float64, got ") +
                         name_of(array.element()));
  }
  std::vector<Merge> merges;
  PythonProgress told(progress);
  LinkageOptions options;
  options.memory_limit = memory_limit;
  options.n_clusters = n_clusters;
  if (height) options.height = *height;
  options.progress = &told;
  {
    const py::gil_scoped_release release;
    if (array.rank() == 2) {
      merges = linkage_rows(array.view(), method, options);
    } else {
      const Values<double> condensed(array);
      merges = linkage(condensed.span(), method);
    }
  }
  py::array out = new_matrix(static_cast<std::int64_t>(merges.size()), 4, DType::f64);
  if (!merges.empty()) std::memcpy(out.mutable_data(), merges.data(), merges.size() * sizeof(Merge));
  return out;
}

/// Z as merges: its own memory if it is C-contiguous, else gathered into `gathered`.
Span<const Merge> merges_of(const Array& z, std::vector<Merge>& gathered) {
  const auto count = static_cast<std::size_t>(z.shape(0));
  const auto* data = static_cast<const double*>(z.data());
  if (z.stride(1) == 1 && (count <= 1 || z.stride(0) == 4)) return {reinterpret_cast<const Merge*>(data), count};
  gathered.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double* row = data + static_cast<std::int64_t>(i) * z.stride(0);
    gathered[i] = {row[0], row[z.stride(1)], row[2 * z.stride(1)], row[3 * z.stride(1)]};
  }
  return gathered;
}

py::array cut_tree(const py::object& z, std::optional<std::int64_t> n_clusters, std::optional<double> height,
                   std::optional<std::int64_t> n_observations) {
  if (n_clusters.has_value() == height.has_value()) {
    throw std::invalid_argument(std::string("[cut_tree] exactly one of n_clusters and height must be given, got ") +
                                (height ? "both" : "neither"));
  }
  const Array array({"cut_tree", "Z"}, z, Access::read, {2}, {Element::f64});
  if (array.shape(1) != 4) {
    throw std::invalid_argument("[cut_tree] Z must have shape (n - 1, 4), got (" + std::to_string(array.shape(0)) +
                                ", " + std::to_string(array.shape(1)) + ")");
  }
  if (n_observations && *n_observations < array.shape(0) + 1) {
    throw std::invalid_argument("[cut_tree] n_observations must be at least " + std::to_string(array.shape(0) + 1) +
                                " for " + std::to_string(array.shape(0)) + " merges, got " +
                                std::to_string(*n_observations));
  }
  py::array_t<std::int64_t> labels = new_labels(n_observations.value_or(array.shape(0) + 1));
  const Span<std::int64_t> out = span_of(labels);
  {
    const py::gil_scoped_release release;
    std::vector<Merge> gathered;
    const Span<const Merge> merges = merges_of(array, gathered);
    if (n_clusters) {
      cut_tree_count(merges, *n_clusters, out);
    } else {
      cut_tree_height(merges, *height, out);
    }
  }
  return std::move(labels);
}

py::array star(const py::object& d, double threshold, std::int64_t min_clusters) {
  const Array distances({"star_clusters", "D"}, d, Access::read, {2}, kDistances);
  py::array_t<std::int64_t> labels = new_labels(distances.shape(0));
  const Span<std::int64_t> out = span_of(labels);
  {
    const py::gil_scoped_release release;
    star_clusters(distances.view(), threshold, min_clusters, out);
  }
  return std::move(labels);
}

py::array star_rows(const py::object& x, double threshold, std::int64_t min_clusters, std::int64_t memory_limit,
                    const py::object& progress, const std::optional<std::string>& dtype) {
  const Array rows({"star_clusters_rows", "X"}, x, Access::read, {2}, kRows, dtype);
  py::array_t<std::int64_t> labels = new_labels(rows.shape(0));
  const Span<std::int64_t> out = span_of(labels);
  PythonProgress told(progress);
  LinkageOptions options;
  options.memory_limit = memory_limit;
  options.progress = &told;
  {
    const py::gil_scoped_release release;
    star_clusters_rows(rows.view(), threshold, min_clusters, out, options);
  }
  return std::move(labels);
}

py::tuple star_count(const py::object& d, std::int64_t n_clusters) {
  const Array distances({"star_clusters_count", "D"}, d, Access::read, {2}, kDistances);
  py::array_t<std::int64_t> labels = new_labels(distances.shape(0));
  const Span<std::int64_t> out = span_of(labels);
  double threshold = 0;
  {
    const py::gil_scoped_release release;
    threshold = star_clusters_count(distances.view(), n_clusters, out);
  }
  return py::make_tuple(std::move(labels), threshold);
}

/// (threshold, counts, requested total, reached total).
py::tuple allocate(const py::sequence& layers, std::int64_t total, std::int64_t min_experts, std::int64_t n_group) {
  std::vector<Array> arrays;
  std::vector<ConstMatrixView> views;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string name = "distances_per_layer[" + std::to_string(i) + "]";
    arrays.emplace_back(Argument{"allocate_experts", name.c_str()}, layers[i], Access::read, Ranks{2}, kDistances);
    views.push_back(arrays.back().view());
  }
  Allocation result;
  {
    const py::gil_scoped_release release;
    result = allocate_experts(Span<const ConstMatrixView>(views), total, min_experts, n_group);
  }
  return py::make_tuple(result.threshold, result.counts, result.requested_total, result.reached_total);
}

}  // namespace

void register_cluster(py::module_& module) {
  module.def("linkage", &linkage_matrix, py::arg("Y"), py::arg("method"), py::arg("dtype"), py::arg("memory_limit"),
             py::arg("n_clusters"), py::arg("height"), py::arg("progress"));
  module.def("star_clusters_rows", &star_rows, py::arg("X"), py::arg("threshold"), py::arg("min_clusters"),
             py::arg("memory_limit"), py::arg("progress"), py::arg("dtype"));
  module.def("cut_tree", &cut_tree, py::arg("Z"), py::arg("n_clusters"), py::arg("height"), py::arg("n_observations"));
  module.def("star_clusters", &star, py::arg("D"), py::arg("threshold"), py::arg("min_clusters"));
  module.def("star_clusters_count", &star_count, py::arg("D"), py::arg("n_clusters"));
  module.def("allocate_experts", &allocate, py::arg("distances_per_layer"), py::arg("total"), py::arg("min_experts"),
             py::arg("n_group"));
}

}  // namespace stun_ext::python
