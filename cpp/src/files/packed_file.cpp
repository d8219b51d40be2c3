// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/packed_file.hpp"

#include <optional>
#include <utility>

#include "check.hpp"
#include "files/json.hpp"
#include "sparse/packed.hpp"

namespace stun_ext {
namespace {

using detail::fail;
using detail::Json;

constexpr const char* kOperation = "packed file";
constexpr std::int64_t kMostSize = std::int64_t{1} << 31;

std::string base_of(const PackedParameter& parameter, std::int64_t expert) {
  return parameter.name + "." + std::to_string(expert);
}

const char* stored_name(DType dtype) noexcept {
  return dtype == DType::f32 ? "F32" : dtype == DType::f16 ? "F16" : "BF16";
}

/// False if the entry is damaged.
bool read_entry(const Json& entry, std::size_t most_experts, PackedParameter& parameter) {
  const Json *num_experts = entry.find("num_experts"), *shape = entry.find("shape"), *dtype = entry.find("dtype");
  if (num_experts == nullptr || shape == nullptr || dtype == nullptr || shape->array().size() != 2) return false;
  for (const Json* size : {num_experts, &shape->array()[0], &shape->array()[1]}) {
    if (size->kind() != Json::Kind::integer || size->integer() < 1 || size->integer() >= kMostSize) return false;
  }
  parameter.num_experts = num_experts->integer();
  parameter.rows = shape->array()[0].integer();
  parameter.cols = shape->array()[1].integer();
  for (const DType known : {DType::f32, DType::f16, DType::bf16}) {
    if (dtype->string() != name_of(known)) continue;
    parameter.dtype = known;
    return static_cast<std::size_t>(parameter.num_experts) <= most_experts;
  }
  return false;
}

/// Sizes and types of one matrix's tensors, but for what the masks say.
bool is_complete(const SafetensorsFile& file, const PackedParameter& parameter, const std::string& base) {
  const char* stored = stored_name(parameter.dtype);
  const StoredTensor *weight = file.find(base + ".weight"), *values = file.find(base + ".values"),
                     *masks = file.find(base + ".masks");
  if (weight != nullptr) {
    const std::vector<std::int64_t> shape = {parameter.rows, parameter.cols};
    return values == nullptr && masks == nullptr && weight->dtype == stored && weight->shape == shape;
  }
  if (values == nullptr || masks == nullptr || values->dtype != stored || masks->dtype != "U32") return false;
  const std::int64_t count =
      detail::packed_groups(parameter.rows) * detail::packed_blocks(parameter.cols) * kPackedRows;
  return masks->bytes.size() == static_cast<std::size_t>(4 * count);
}

}  // namespace

PackedFile::PackedFile(SafetensorsFile file) : file_(std::move(file)) {
  const std::string &path = file_.path(), *format = file_.metadata("format"),
                    *version = file_.metadata("format_version"), *list = file_.metadata("experts");
  if (format == nullptr || *format != "stun_ext.experts") fail(kOperation, path, ": is not a file of packed experts");
  if (version == nullptr || *version != "1") {
    fail(kOperation, path, ": format_version must be 1, got ", version == nullptr ? "none" : *version);
  }
  const std::optional<Json> entries = list == nullptr ? std::nullopt : Json::parse(*list);
  if (!entries || entries->array().empty()) fail(kOperation, path, ": the list of experts is damaged");
  for (const Json& entry : entries->array()) {
    const Json* name = entry.find("name");
    if (name == nullptr || name->kind() != Json::Kind::string) {
      fail(kOperation, path, ": the list of experts is damaged");
    }
    PackedParameter parameter;
    parameter.name = name->string();
    if (!read_entry(entry, file_.tensors().size(), parameter)) {
      fail(kOperation, path, ": the entry of ", parameter.name, " is damaged");
    }
    if (find(parameter.name) != nullptr) fail(kOperation, path, ": ", parameter.name, " is listed twice");
    for (std::int64_t expert = 0; expert < parameter.num_experts; ++expert) {
      const std::string base = base_of(parameter, expert);
      if (!is_complete(file_, parameter, base)) {
        fail(kOperation, path, ": the tensors of ", base, " are missing, or not of the shape and dtype listed");
      }
    }
    parameters_.push_back(std::move(parameter));
  }
}

const PackedParameter* PackedFile::find(const std::string& name) const noexcept {
  for (const PackedParameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

ExpertWeight PackedFile::matrix(const PackedParameter& parameter, std::int64_t expert, Executor& executor) const {
  const PackedParameter* known = find(parameter.name);
  if (known == nullptr || expert < 0 || expert >= known->num_experts) {
    fail(kOperation, file_.path(), ": has no ", base_of(parameter, expert));
  }
  const std::string base = base_of(*known, expert);
  if (file_.find(base + ".weight") != nullptr) return file_.matrix(base + ".weight");
  const Span<const std::byte> values = file_.find(base + ".values")->bytes, masks = file_.find(base + ".masks")->bytes;
  if (reinterpret_cast<std::uintptr_t>(masks.data()) % alignof(std::uint32_t) != 0) {
    fail(kOperation, file_.path(), ": ", base, ".masks must be aligned to its elements");
  }
  try {
    return PackedMatrix::from_buffers(known->rows, known->cols, known->dtype, values,
                                      {reinterpret_cast<const std::uint32_t*>(masks.data()), masks.size() / 4},
                                      executor);
  } catch (const std::invalid_argument& error) {
    fail(kOperation, file_.path(), ": ", base, " is damaged: ", error.what());
  }
}

Experts PackedFile::experts(const std::string& module, ExpertFunction function, ConstMatrixView up_bias,
                            ConstMatrixView down_bias, Executor& executor) const {
  const PackedParameter *up = find(module + ".gate_up_proj"), *down = find(module + ".down_proj");
  function.is_gated = up != nullptr;
  if (up == nullptr) up = find(module + ".up_proj");
  if (up == nullptr || down == nullptr || up->num_experts != down->num_experts) {
    fail(kOperation, file_.path(), ": has no experts of ", module);
  }
  std::vector<ExpertWeight> of_up, of_down;
  for (std::int64_t expert = 0; expert < up->num_experts; ++expert) {
    of_up.push_back(matrix(*up, expert, executor));
    of_down.push_back(matrix(*down, expert, executor));
  }
  Experts experts(std::move(of_up), std::move(of_down), function, up_bias, down_bias);
  experts.storage_ = std::make_shared<const SafetensorsFile>(file_);
  return experts;
}

}  // namespace stun_ext
