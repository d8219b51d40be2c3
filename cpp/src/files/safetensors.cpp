// SPDX-License-Identifier: Apache-2.0
#include "stun_ext/safetensors.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>
#include <utility>

#include "check.hpp"
#include "files/json.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace stun_ext {
namespace {

using detail::fail;
using detail::Json;

constexpr const char* kOperation = "safetensors";
constexpr std::uint64_t kMostHeader = std::uint64_t{100} << 20;  // the format's own limit
constexpr std::size_t kMostRank = 32;

/// The whole of a file, mapped where the system can.
class Mapping {
 public:
  Mapping() noexcept = default;
  explicit Mapping(const std::string& path);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();
  Span<const std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::vector<std::byte> copy_;
};

#if defined(__unix__) || defined(__APPLE__)

Mapping::Mapping(const std::string& path) {
  struct Descriptor {
    int number;
    ~Descriptor() {
      if (number >= 0) close(number);
    }
  } const file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) fail(kOperation, path, ": ", std::strerror(errno));
  struct stat status{};
  if (fstat(file.number, &status) != 0) fail(kOperation, path, ": ", std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(kOperation, path, ": must be a file");
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;
  void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (data == MAP_FAILED) fail(kOperation, path, ": ", std::strerror(errno));
  data_ = static_cast<const std::byte*>(data);
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

#else

Mapping::Mapping(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail(kOperation, path, ": cannot be opened");
  copy_.resize(static_cast<std::size_t>(file.tellg()));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(copy_.data()), static_cast<std::streamsize>(copy_.size()))) {
    fail(kOperation, path, ": cannot be read");
  }
  data_ = copy_.data();
  size_ = copy_.size();
}

Mapping::~Mapping() = default;

#endif

bool is_size(const Json& value) noexcept { return value.kind() == Json::Kind::integer && value.integer() >= 0; }

/// False if the entry is damaged.
bool read_entry(const Json& entry, Span<const std::byte> data, StoredTensor& tensor) {
  const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
  if (dtype == nullptr || dtype->kind() != Json::Kind::string || shape == nullptr || offsets == nullptr) return false;
  if (shape->kind() != Json::Kind::array || shape->array().size() > kMostRank || offsets->array().size() != 2) {
    return false;
  }
  tensor.dtype = dtype->string();
  for (const Json& size : shape->array()) {
    if (!is_size(size)) return false;
    tensor.shape.push_back(size.integer());
  }
  const Json &begin = offsets->array()[0], &end = offsets->array()[1];
  if (!is_size(begin) || !is_size(end) || begin.integer() > end.integer()) return false;
  if (static_cast<std::uint64_t>(end.integer()) > data.size()) return false;
  tensor.bytes = {data.data() + begin.integer(), static_cast<std::size_t>(end.integer() - begin.integer())};
  return true;
}

/// What a SafetensorsFile shares.
struct File {
  explicit File(const std::string& of_path) : path(of_path), mapping(of_path) { read(mapping.bytes()); }
  File(const std::string& name, Span<const std::byte> content) : path(name) { read(content); }

  void read(Span<const std::byte> content) {
    std::uint64_t length = kMostHeader + 1;
    if (content.size() >= 8) {
      length = 0;
      for (std::size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(content[i]);
    }
    if (length > kMostHeader || length > content.size() - 8) fail(kOperation, path, ": is not a safetensors file");
    const auto header_size = static_cast<std::size_t>(length);
    const std::optional<Json> header = Json::parse({reinterpret_cast<const char*>(content.data()) + 8, header_size});
    if (!header || header->kind() != Json::Kind::object) fail(kOperation, path, ": is not a safetensors file");
    const Span<const std::byte> data(content.data() + 8 + header_size, content.size() - 8 - header_size);
    for (const auto& [name, entry] : header->object()) {
      if (name == "__metadata__") {
        for (const auto& [key, value] : entry.object()) {
          if (value.kind() == Json::Kind::string) metadata.emplace_back(key, value.string());
        }
        continue;
      }
      StoredTensor tensor;
      tensor.name = name;
      if (!read_entry(entry, data, tensor)) {
        fail(kOperation, path, ": the header's entry of ", name, " is damaged, or the file is truncated");
      }
      tensors.push_back(std::move(tensor));
    }
    std::sort(tensors.begin(), tensors.end(),
              [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  }

  std::string path;
  Mapping mapping;
  std::vector<StoredTensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
};

const File& of(const std::shared_ptr<const void>& file) noexcept { return *static_cast<const File*>(file.get()); }

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(std::make_shared<const File>(path)) {}
SafetensorsFile::SafetensorsFile(const std::string& name, Span<const std::byte> content)
    : file_(std::make_shared<const File>(name, content)) {}

const std::string& SafetensorsFile::path() const noexcept { return of(file_).path; }
Span<const StoredTensor> SafetensorsFile::tensors() const noexcept { return of(file_).tensors; }

const std::string* SafetensorsFile::metadata(const std::string& key) const noexcept {
  for (const auto& [known, value] : of(file_).metadata) {
    if (known == key) return &value;
  }
  return nullptr;
}

const StoredTensor* SafetensorsFile::find(const std::string& name) const noexcept {
  const auto& tensors = of(file_).tensors;
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name,
                                      [](const StoredTensor& a, const std::string& b) { return a.name < b; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

ConstMatrixView SafetensorsFile::matrix(const std::string& name) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr) fail(kOperation, path(), ": has no tensor ", name);
  const auto refuse = [&](const auto&... reason) { fail(kOperation, path(), ": ", name, reason...); };
  DType dtype = DType::f32;
  if (tensor->dtype == "F16") {
    dtype = DType::f16;
  } else if (tensor->dtype == "BF16") {
    dtype = DType::bf16;
  } else if (tensor->dtype != "F32") {
    refuse(" must be F32, F16 or BF16, got ", tensor->dtype);
  }
  const std::vector<std::int64_t>& shape = tensor->shape;
  if (shape.size() != 1 && shape.size() != 2) refuse(" must have 1 or 2 dimensions, got ", shape.size());
  const std::int64_t cols = shape.back(), rows = shape.size() == 2 ? shape[0] : 1;
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  const auto bytes = static_cast<std::int64_t>(tensor->bytes.size());
  const bool fits = rows == 0 || cols == 0
                        ? bytes == 0
                        : bytes % size == 0 && (bytes / size) % cols == 0 && bytes / size / cols == rows;
  if (!fits) refuse(" must have the bytes of its shape, got ", bytes);
  if (reinterpret_cast<std::uintptr_t>(tensor->bytes.data()) % static_cast<std::uintptr_t>(size) != 0) {
    refuse(" must be aligned to its elements");
  }
  return {tensor->bytes.data(), rows, cols, cols, 1, dtype};
}

}  // namespace stun_ext
