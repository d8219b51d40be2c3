// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <utility>

#include "files/json.hpp"
#include "stun_ext/packed_file.hpp"
#include "support.hpp"

namespace stun_ext {
namespace {

using detail::Json;
using test::expect_error;
using test::Layout;
using test::Matrix;

TEST(Json, ReadsEveryKind) {
  const auto value = Json::parse(
      R"( {"a": [1, -20, 0, 1.5, 2e3, -0.5E-2], "b": {"c": null, "d": true, "e": false}, "f": "\"\\\/\b\f\n\r\t"} )");
  ASSERT_TRUE(value);
  const std::vector<Json>& numbers = value->find("a")->array();
  ASSERT_EQ(numbers.size(), 6u);
  EXPECT_EQ(numbers[1].integer(), -20);
  EXPECT_EQ(numbers[2].kind(), Json::Kind::integer);
  for (const std::size_t i : {3u, 4u, 5u}) EXPECT_EQ(numbers[i].kind(), Json::Kind::number);
  EXPECT_EQ(value->find("b")->find("c")->kind(), Json::Kind::null);
  EXPECT_TRUE(value->find("b")->find("d")->boolean());
  EXPECT_FALSE(value->find("b")->find("e")->boolean());
  EXPECT_EQ(value->find("f")->string(), "\"\\/\b\f\n\r\t");
  EXPECT_EQ(value->find("g"), nullptr);
  EXPECT_EQ(Json::parse(R"("\u0041\u00e9\u20ac\ud83d\ude00")")->string(), "A\u00e9\u20ac\U0001F600");
  EXPECT_EQ(Json::parse("9223372036854775807")->integer(), INT64_MAX);
  EXPECT_EQ(Json::parse("9223372036854775808")->kind(), Json::Kind::number);
  EXPECT_TRUE(Json::parse("[]")->array().empty());
  EXPECT_TRUE(Json::parse("{ }")->object().empty());
}

TEST(Json, RefusesWhatIsNone) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "}",
                           "[1,]",
                           "[1 2]",
                           "{\"a\" 1}",
                           "{\"a\":}",
                           "{a:1}",
                           "{\"a\":1,}",
                           "tru",
                           "nul",
                           "01",
                           "-",
                           "1.",
                           ".5",
                           "1e",
                           "+1",
                           "\"",
                           "\"\\",
                           "\"\\x\"",
                           "\"\\u12g4\"",
                           "\"\\u123",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "\"\n\"",
                           "1 1",
                           "{\"a\":1,\"a\":2}",
                           "NaN",
                           "Infinity",
                           "'a'",
                           "[1]]"}) {
    EXPECT_FALSE(Json::parse(text)) << text;
  }
  EXPECT_FALSE(Json::parse(std::string_view("\"\\\0\"", 4)));
  EXPECT_TRUE(Json::parse(std::string(64, '[') + std::string(64, ']')));
  EXPECT_FALSE(Json::parse(std::string(65, '[') + std::string(65, ']')));
  EXPECT_FALSE(Json::parse(std::string(1000000, '[')));
}

/// A file in memory, its data at a multiple of 64 bytes.
class Content {
 public:
  Content(std::string header, const std::vector<std::byte>& data) {
    header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');
    bytes_.resize(8 + header.size() + data.size());
    for (int i = 0; i < 8; ++i) bytes_[static_cast<std::size_t>(i)] = std::byte(header.size() >> 8 * i & 255);
    std::memcpy(bytes_.data() + 8, header.data(), header.size());
    if (!data.empty()) std::memcpy(bytes_.data() + 8 + header.size(), data.data(), data.size());
  }
  Span<const std::byte> span(std::size_t cut = 0) const { return {bytes_.data(), bytes_.size() - cut}; }

 private:
  std::vector<std::byte> bytes_;
};

SafetensorsFile open(const Content& content) { return SafetensorsFile("x.safetensors", content.span()); }

TEST(Safetensors, FindsTensorsWhereTheyLie) {
  const std::vector<std::byte> data(24, std::byte{1});
  const Content content(
      R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("a":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]},"n":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}})",
      data);
  const SafetensorsFile file = open(content);
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(*file.metadata("k"), "v");
  EXPECT_EQ(file.metadata("l"), nullptr);
  EXPECT_EQ(file.find("c"), nullptr);
  const ConstMatrixView b = file.matrix("b"), a = file.matrix("a");
  EXPECT_EQ(b.rows, 2);
  EXPECT_EQ(b.cols, 3);
  EXPECT_EQ(static_cast<const std::byte*>(a.data) - static_cast<const std::byte*>(b.data), 8);
  EXPECT_EQ(a.rows, 1);
  EXPECT_EQ(file.matrix("n").rows, 0);
}

TEST(Safetensors, RefusesDamage) {
  const std::vector<std::byte> data(24);
  const auto refused = [&](const std::string& header, const std::string& message) {
    expect_error([&] { open(Content(header, data)); }, {"[safetensors] x.safetensors", message});
  };
  for (const char* header : {"", "[]", "{", "{\"a\":1,\"a\":1}", "1"}) refused(header, "is not a safetensors file");
  for (
      const char* entry :
      {"1", "{}", R"({"dtype":"F32","shape":[2]})", R"({"dtype":1,"shape":[2],"data_offsets":[0,8]})",
       R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})", R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
       R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})", R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
       R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})",
       R"({"dtype":"F32","shape":[2],"data_offsets":[0,25]})",
       R"({"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807]})",
       R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})"}) {
    refused(std::string(R"({"some.tensor":)") + entry + "}", "the header's entry of some.tensor is damaged");
  }
  const Content good(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})", data);
  for (const std::size_t cut : {1u, 24u}) {
    expect_error([&] { SafetensorsFile("y", good.span(cut)); },
                 {"[safetensors] y", "a is damaged, or the file is truncated"});
  }
  for (const std::size_t size : {0u, 7u, 8u, 20u}) {
    expect_error([&] { SafetensorsFile("y", {good.span().data(), size}); }, {"is not a safetensors file"});
  }
  expect_error([&] { SafetensorsFile("/nowhere/x.safetensors"); },
               {"[safetensors] /nowhere/x.safetensors: No such file"});
  expect_error([&] { SafetensorsFile("/"); }, {"[safetensors] /"});
}

TEST(Safetensors, RefusesMatricesThatAreNone) {
  const std::vector<std::byte> data(24);
  const auto refused = [&](const std::string& entry, const std::string& message) {
    const Content content("{\"a\":" + entry + "}", data);
    const SafetensorsFile file = open(content);
    expect_error([&] { file.matrix("a"); }, {"[safetensors] x.safetensors: a", message});
  };
  refused(R"({"dtype":"U32","shape":[2,3],"data_offsets":[0,24]})", "must be F32, F16 or BF16, got U32");
  refused(R"({"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]})", "must have 1 or 2 dimensions");
  refused(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})", "must have 1 or 2 dimensions");
  refused(R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,24]})", "must have the bytes of its shape");
  refused(R"({"dtype":"F32","shape":[3037000500,6074001000],"data_offsets":[0,24]})",
          "must have the bytes of its shape");
  refused(R"({"dtype":"F32","shape":[0,6],"data_offsets":[0,24]})", "must have the bytes of its shape");
  refused(R"({"dtype":"F32","shape":[1],"data_offsets":[2,6]})", "must be aligned");
  const Content content("{}", data);
  expect_error([&] { open(content).matrix("a"); }, {"has no tensor a"});
}

/// A packed file of two experts, the second one's up projection dense; every part of it can be spoilt.
struct PackedContent {
  PackedContent() : up(weight(6, 5, 0.5)), dense(weight(6, 5, 1.0)), down(weight(5, 3, 0.5)) {
    add("m.up_proj.0", pack(up.view()));
    add_bytes("m.up_proj.1.weight", "BF16", "[6,5]", dense.view().data, 60);
    add("m.down_proj.0", pack(down.view()));
    add("m.down_proj.1", pack(down.view()));
  }

  static Matrix weight(std::int64_t rows, std::int64_t cols, double density) {
    Matrix matrix(DType::bf16, rows, cols);
    std::mt19937 generator(3);
    std::uniform_real_distribution<double> uniform;
    matrix.fill(
        [&](std::int64_t, std::int64_t) { return uniform(generator) < density ? 1.0 + uniform(generator) : 0.0; });
    return matrix;
  }
  void add(const std::string& name, const PackedMatrix& matrix) {
    add_bytes(name + ".values", "BF16", "[" + std::to_string(matrix.values().size() / 2) + "]", matrix.values().data(),
              matrix.values().size());
    add_bytes(name + ".masks", "U32", "[" + std::to_string(matrix.masks().size()) + "]", matrix.masks().data(),
              4 * matrix.masks().size());
  }
  void add_bytes(const std::string& name, const std::string& dtype, const std::string& shape, const void* from,
                 std::size_t size) {
    data.resize((data.size() + 63) / 64 * 64);
    const std::size_t begin = data.size();
    data.resize(begin + size);
    std::memcpy(data.data() + begin, from, size);
    tensors.push_back({name, "{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
                                 std::to_string(begin) + "," + std::to_string(begin + size) + "]}"});
  }

  Content content() const {
    std::string quoted;
    for (const char c : experts) quoted += c == '"' ? "\\\"" : std::string(1, c);
    std::string header = "{\"__metadata__\":{\"format\":\"" + format + "\",\"format_version\":\"" + version +
                         "\",\"experts\":\"" + quoted + "\"}";
    for (const auto& [name, entry] : tensors) header += ",\"" + name + "\":" + entry;
    return Content(header + "}", data);
  }

  Matrix up, dense, down;
  std::string format = "stun_ext.experts", version = "1";
  std::string experts = R"([{"name":"m.up_proj","num_experts":2,"shape":[6,5],"dtype":"bfloat16"},)"
                        R"({"name":"m.down_proj","num_experts":2,"shape":[5,3],"dtype":"bfloat16"}])";
  std::vector<std::pair<std::string, std::string>> tensors;
  std::vector<std::byte> data;
};

void expect_refused(const PackedContent& packed, const std::vector<std::string>& parts) {
  const Content content = packed.content();
  expect_error([&] { const PackedFile file(open(content)); }, parts);
}

TEST(PackedFile, GivesMatricesWhereTheyLie) {
  PackedContent packed;
  const Content content = packed.content();
  const PackedFile file(open(content));
  ASSERT_EQ(file.parameters().size(), 2u);
  const PackedParameter& up = file.parameters()[0];
  EXPECT_EQ(up.name, "m.up_proj");
  EXPECT_EQ(up.num_experts, 2);
  const auto matrix = std::get<PackedMatrix>(file.matrix(up, 0));
  const std::byte *begin = content.span().data(), *end = begin + content.span().size();
  EXPECT_TRUE(matrix.values().data() > begin && matrix.values().data() < end);
  Matrix out(DType::bf16, 6, 5);
  unpack(matrix, out.view());
  const auto dense = std::get<ConstMatrixView>(file.matrix(up, 1));
  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t c = 0; c < 5; ++c) {
      EXPECT_EQ(out.get(r, c), packed.up.get(r, c));
      EXPECT_EQ(test::decode_bfloat16(static_cast<const std::uint16_t*>(dense.data)[r * 5 + c]),
                packed.dense.get(r, c));
    }
  }
  expect_error([&] { file.matrix(up, 2); }, {"[packed file] x.safetensors: has no m.up_proj.2"});
  expect_error([&] { file.matrix({"m.gate", 1, 1, 1, DType::f32}, 0); }, {"has no m.gate.0"});
}

TEST(PackedFile, MakesTheExpertsOfAModule) {
  PackedContent packed;
  packed.experts = R"([{"name":"m.gate_up_proj","num_experts":2,"shape":[6,5],"dtype":"bfloat16"},)"
                   R"({"name":"m.down_proj","num_experts":2,"shape":[5,3],"dtype":"bfloat16"}])";
  for (auto& [name, entry] : packed.tensors) {
    if (name.rfind("m.up_proj", 0) == 0) name.replace(0, 9, "m.gate_up_proj");
  }
  const Content content = packed.content();
  const PackedFile file(open(content));
  const Experts experts = file.experts("m");
  EXPECT_EQ(experts.num_experts(), 2);
  EXPECT_EQ(experts.hidden_size(), 5);
  EXPECT_EQ(experts.intermediate_size(), 3);
  EXPECT_TRUE(experts.function().is_gated);
  expect_error([&] { file.experts("n"); }, {"[packed file] x.safetensors: has no experts of n"});
  // The rows of `up` are those of a gate alone, so that nothing fits.
  const Content other = PackedContent().content();
  expect_error([&] { PackedFile(open(other)).experts("m"); },
               {"[Experts] down of expert 0 must be [5, 6], got [5, 3]"});
}

TEST(PackedFile, RefusesDamage) {
  const auto refused = [&](auto&& spoil, const std::string& message) {
    PackedContent packed;
    spoil(packed);
    expect_refused(packed, {"[packed file] x.safetensors", message});
  };
  refused([](auto& p) { p.format = "other"; }, "is not a file of packed experts");
  refused([](auto& p) { p.version = "2"; }, "format_version must be 1, got 2");
  for (const char* list : {"", "{}", "[]", "[1]", "[{}]", "[{\"name\":1}]"}) {
    refused([&](auto& p) { p.experts = list; }, "the list of experts is damaged");
  }
  for (const char* rest :
       {R"("num_experts":2,"shape":[6,5])", R"("num_experts":2,"shape":[6],"dtype":"bfloat16")",
        R"("num_experts":0,"shape":[6,5],"dtype":"bfloat16")", R"("num_experts":2,"shape":[6,5],"dtype":"int8")",
        R"("num_experts":2,"shape":[6,5.5],"dtype":"bfloat16")",
        R"("num_experts":900,"shape":[6,5],"dtype":"bfloat16")",
        R"("num_experts":2,"shape":[6,2147483648],"dtype":"bfloat16")"}) {
    refused([&](auto& p) { p.experts = std::string(R"([{"name":"m.up_proj",)") + rest + "}]"; },
            "the entry of m.up_proj is damaged");
  }
  refused([](auto& p) { p.experts = p.experts.substr(0, p.experts.find("},") + 1) + "," + p.experts.substr(1); },
          "m.up_proj is listed twice");
  refused([](auto& p) { p.tensors.erase(p.tensors.begin()); }, "the tensors of m.up_proj.0 are missing");
  refused([](auto& p) { p.tensors[1].first = "m.up_proj.0.mask"; }, "the tensors of m.up_proj.0 are missing");
  refused([](auto& p) { p.tensors[2].second.replace(p.tensors[2].second.find("[6,5]"), 5, "[5,6]"); },
          "the tensors of m.up_proj.1 are missing, or not of the shape and dtype listed");
}

TEST(PackedFile, RefusesMasksThatDoNotFit) {
  PackedContent packed;
  // The masks of the last matrix, the last tensor: one bit more than there are values, outside of the matrix.
  packed.data[packed.data.size() - 4 * 8 + 3] ^= std::byte{0x80};
  const Content content = packed.content();
  const PackedFile file(open(content));
  expect_error([&] { file.matrix(file.parameters()[1], 1); },
               {"[packed file] x.safetensors: m.down_proj.1 is damaged: [from_buffers]"});
}

TEST(PackedFile, IsMapped) {
  const std::string path = ::testing::TempDir() + "/stun_ext_test_files.safetensors";
  {
    const Content content = PackedContent().content();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(content.span().data()),
               static_cast<std::streamsize>(content.span().size()));
  }
  ExpertWeight weight;
  PackedContent packed;
  {
    const PackedFile file(path);
    const PackedFile copy = file;
    weight = copy.matrix(copy.parameters()[1], 0);
    Matrix out(DType::bf16, 5, 3);
    unpack(std::get<PackedMatrix>(weight), out.view());
    for (std::int64_t r = 0; r < 5; ++r) EXPECT_EQ(out.get(r, 2), packed.down.get(r, 2));
  }
  // Experts keep the file mapped, though nobody else does.
  packed.experts = R"([{"name":"m.up_proj","num_experts":1,"shape":[6,5],"dtype":"bfloat16"},)"
                   R"({"name":"m.down_proj","num_experts":1,"shape":[5,6],"dtype":"bfloat16"}])";
  packed.tensors.clear();
  packed.data.clear();
  packed.add("m.up_proj.0", pack(packed.up.view()));
  packed.add("m.down_proj.0", pack(PackedContent::weight(5, 6, 0.5).view()));
  {
    const Content content = packed.content();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(content.span().data()),
               static_cast<std::streamsize>(content.span().size()));
  }
  const Experts experts = PackedFile(path).experts("m");
  std::remove(path.c_str());
  Matrix out(DType::bf16, 6, 5);
  unpack(std::get<PackedMatrix>(experts.up()[0]), out.view());
  for (std::int64_t r = 0; r < 6; ++r) EXPECT_EQ(out.get(r, 4), packed.up.get(r, 4));
}

}  // namespace
}  // namespace stun_ext
