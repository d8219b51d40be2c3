// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "stun_ext/view.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// A tensor of a safetensors file, where it lies.
struct StoredTensor {
  std::string name;
  std::string dtype;  ///< as the format names it: "F32", "BF16", "U32", …
  std::vector<std::int64_t> shape;
  Span<const std::byte> bytes;
};

/// A safetensors file (https://github.com/huggingface/safetensors), mapped and used where it lies. Copies share it.
///
/// The header is checked before any of it is believed: a damaged or hostile file is refused, and a tensor that is found
/// lies within the file. A file that another process cuts short afterwards ends this one at the next read.
class SafetensorsFile {
 public:
  /// @throws std::invalid_argument "[safetensors] path: …" if there is no such file, or it is none of this format; the
  ///         tensor whose entry is wrong is named.
  explicit SafetensorsFile(const std::string& path);

  /// A file in memory of the caller's, which must outlive this; `name` is for messages.
  SafetensorsFile(const std::string& name, Span<const std::byte> content);

  const std::string& path() const noexcept;
  Span<const StoredTensor> tensors() const noexcept;  ///< by name

  /// Of its metadata; nullptr if there is none of this name.
  const std::string* metadata(const std::string& key) const noexcept;

  /// nullptr if there is none of this name.
  const StoredTensor* find(const std::string& name) const noexcept;

  /// A tensor of F32, F16 or BF16 of one dimension (a row) or two, whose bytes are what its shape needs, aligned.
  /// @throws std::invalid_argument naming it.
  ConstMatrixView matrix(const std::string& name) const;

 private:
  std::shared_ptr<const void> file_;
};

}  // namespace stun_ext
#pragma GCC visibility pop
