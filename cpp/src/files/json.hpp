// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stun_ext::detail {

/// A JSON value (RFC 8259), as far as headers of files need it. Strings are the bytes they were, escapes resolved.
class Json {
 public:
  enum class Kind : std::uint8_t { null, boolean, integer, number, string, array, object };
  using Member = std::pair<std::string, Json>;

  /// None if the text is not one value, or if it is nested deeper than 64, repeats a key or has half a surrogate pair.
  static std::optional<Json> parse(std::string_view text);

  Kind kind() const noexcept { return kind_; }
  bool boolean() const noexcept { return integer_ != 0; }
  std::int64_t integer() const noexcept { return integer_; }  ///< of those that fit; others are numbers
  const std::string& string() const noexcept { return string_; }
  const std::vector<Json>& array() const noexcept { return array_; }
  const std::vector<Member>& object() const noexcept { return object_; }  ///< in the order of the text

  /// The member of that name; nullptr if there is none, or this is no object. Takes time linear in their number.
  const Json* find(std::string_view name) const noexcept;

 private:
  friend class JsonParser;
  Kind kind_ = Kind::null;
  std::int64_t integer_ = 0;
  std::string string_;
  std::vector<Json> array_;
  std::vector<Member> object_;
};

}  // namespace stun_ext::detail
