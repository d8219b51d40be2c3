// SPDX-License-Identifier: Apache-2.0
// Safetensors files and files of packed experts: any bytes, or a good file with some of them changed.
#include "fuzz.hpp"
#include "stun_ext/packed_file.hpp"

namespace stun_ext::fuzz {
namespace {

bool is_error_of_files(const std::invalid_argument& error) {
  const std::string message = error.what();
  return message.rfind("[safetensors] ", 0) == 0 || message.rfind("[packed file] ", 0) == 0 ||
         message.rfind("[Experts] ", 0) == 0;
}

void visit(const PackedFile& file) {
  for (const PackedParameter& parameter : file.parameters()) {
    for (std::int64_t expert = 0; expert < parameter.num_experts; ++expert) {
      try {
        const ExpertWeight weight = file.matrix(parameter, expert);
        if (parameter.rows > 1000 || parameter.cols > 1000) continue;
        const auto* packed = std::get_if<PackedMatrix>(&weight);
        if (packed == nullptr) continue;
        std::vector<std::uint32_t> out(static_cast<std::size_t>(parameter.rows * parameter.cols));
        unpack(*packed, {out.data(), parameter.rows, parameter.cols, parameter.cols, 1, parameter.dtype});
      } catch (const std::invalid_argument& error) {
        require(is_error_of_files(error), "names its operation");
      }
    }
  }
  try {
    file.experts("m");
  } catch (const std::invalid_argument& error) {
    require(is_error_of_files(error), "names its operation");
  }
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, std::size_t begin,
                  std::size_t end) {
  return ",\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

/// One expert, [4, 40] and [40, 4], packed.
std::string good_file() {
  std::vector<std::uint16_t> weight(160);
  for (std::size_t i = 0; i < weight.size(); i += 3) weight[i] = 0x3f80;
  const PackedMatrix up = pack({weight.data(), 4, 40, 40, 1, DType::bf16});
  const PackedMatrix down = pack({weight.data(), 40, 4, 4, 1, DType::bf16});
  std::string data, header =
                        R"({"__metadata__":{"format":"stun_ext.experts","format_version":"1","experts":")"
                        R"([{\"name\":\"m.up_proj\",\"num_experts\":1,\"shape\":[4,40],\"dtype\":\"bfloat16\"},)"
                        R"({\"name\":\"m.down_proj\",\"num_experts\":1,\"shape\":[40,4],\"dtype\":\"bfloat16\"}]"})";
  for (const auto* matrix : {&up, &down}) {
    const std::string name = matrix == &up ? "m.up_proj.0" : "m.down_proj.0";
    const std::size_t begin = data.size(), middle = begin + matrix->values().size();
    data.append(reinterpret_cast<const char*>(matrix->values().data()), matrix->values().size());
    data.append(reinterpret_cast<const char*>(matrix->masks().data()), 4 * matrix->masks().size());
    header += entry(name + ".values", "BF16", "[" + std::to_string(matrix->values().size() / 2) + "]", begin, middle);
    header += entry(name + ".masks", "U32", "[" + std::to_string(matrix->masks().size()) + "]", middle, data.size());
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> 8 * i & 255);
  return file + header + data;
}

void run(Input& input) {
  std::string file = good_file();
  const int kind = input.ConsumeIntegralInRange(0, 2);
  if (kind == 0) file = input.ConsumeRemainingBytesAsString();
  if (kind == 1) {  // a header from nowhere, of the right length
    const std::string header = input.ConsumeRemainingBytesAsString();
    file.assign(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> 8 * i & 255);
    file += header;
  }
  if (kind == 2) {
    for (int changes = input.ConsumeIntegralInRange(0, 4); changes > 0 && !file.empty(); --changes) {
      const std::size_t place = input.ConsumeIntegralInRange<std::size_t>(0, file.size() - 1);
      if (input.ConsumeIntegralInRange(0, 9) == 0)
        file.resize(place);
      else
        file[place] = static_cast<char>(input.ConsumeIntegral<std::uint8_t>());
    }
  }
  // Memory of exactly this size, aligned as a mapped file is.
  const std::unique_ptr<std::uint64_t[]> memory(new std::uint64_t[file.size() / 8 + 1]);
  std::memcpy(memory.get(), file.data(), file.size());
  try {
    const SafetensorsFile opened("x", {reinterpret_cast<const std::byte*>(memory.get()), file.size()});
    for (const StoredTensor& tensor : opened.tensors()) {
      require(opened.find(tensor.name) == &tensor, "tensors are found by name");
      try {
        const ConstMatrixView view = opened.matrix(tensor.name);
        require(view.rows >= 0 && view.cols >= 0, "a shape");
      } catch (const std::invalid_argument& error) {
        require(is_error_of_files(error), "names its operation");
      }
    }
    visit(PackedFile(opened));
  } catch (const std::invalid_argument& error) {
    require(is_error_of_files(error), "names its operation");
  }
}

}  // namespace
}  // namespace stun_ext::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stun_ext::fuzz::Input input(data, size);
  stun_ext::fuzz::run(input);
  return 0;
}
