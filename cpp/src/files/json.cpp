// SPDX-License-Identifier: Apache-2.0
#include "files/json.hpp"

#include <algorithm>
#include <charconv>

namespace stun_ext::detail {

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  std::optional<Json> run() {
    Json value;
    skip_space();
    if (!parse(value, 0)) return std::nullopt;
    skip_space();
    if (place_ != text_.size()) return std::nullopt;
    return value;
  }

 private:
  static constexpr int kMostDepth = 64;

  bool at_end() const noexcept { return place_ >= text_.size(); }
  char peek() const noexcept { return at_end() ? '\0' : text_[place_]; }
  void skip_space() noexcept {
    while (!at_end() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++place_;
  }
  bool take(std::string_view expected) noexcept {
    if (text_.substr(place_, expected.size()) != expected) return false;
    place_ += expected.size();
    return true;
  }

  bool parse(Json& value, int depth) {
    switch (peek()) {
      case '{':
        return depth < kMostDepth && parse_object(value, depth);
      case '[':
        return depth < kMostDepth && parse_array(value, depth);
      case '"':
        value.kind_ = Json::Kind::string;
        return parse_string(value.string_);
      case 't':
        value.kind_ = Json::Kind::boolean;
        value.integer_ = 1;
        return take("true");
      case 'f':
        value.kind_ = Json::Kind::boolean;
        return take("false");
      case 'n':
        return take("null");
      default:
        return parse_number(value);
    }
  }

  bool parse_object(Json& value, int depth) {
    value.kind_ = Json::Kind::object;
    ++place_;
    skip_space();
    if (take("}")) return true;
    do {
      skip_space();
      Json::Member member;
      if (peek() != '"' || !parse_string(member.first)) return false;
      skip_space();
      if (!take(":")) return false;
      skip_space();
      if (!parse(member.second, depth + 1)) return false;
      value.object_.push_back(std::move(member));
      skip_space();
    } while (take(","));
    return take("}") && has_distinct_names(value.object_);
  }

  static bool has_distinct_names(const std::vector<Json::Member>& members) {
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto& [name, value] : members) names.emplace_back(name);
    std::sort(names.begin(), names.end());
    return std::adjacent_find(names.begin(), names.end()) == names.end();
  }

  bool parse_array(Json& value, int depth) {
    value.kind_ = Json::Kind::array;
    ++place_;
    skip_space();
    if (take("]")) return true;
    do {
      skip_space();
      value.array_.emplace_back();
      if (!parse(value.array_.back(), depth + 1)) return false;
      skip_space();
    } while (take(","));
    return take("]");
  }

  bool take_digits() noexcept {
    const std::size_t start = place_;
    while (peek() >= '0' && peek() <= '9') ++place_;
    return place_ > start;
  }

  bool parse_number(Json& value) noexcept {
    const std::size_t start = place_;
    take("-");
    if (!take("0") && !take_digits()) return false;
    bool is_integer = true;
    if (take(".")) {
      is_integer = false;
      if (!take_digits()) return false;
    }
    if (take("e") || take("E")) {
      is_integer = false;
      if (!take("+")) take("-");
      if (!take_digits()) return false;
    }
    value.kind_ = Json::Kind::number;
    if (!is_integer) return true;
    const char* end = text_.data() + place_;
    const auto result = std::from_chars(text_.data() + start, end, value.integer_);
    if (result.ec == std::errc() && result.ptr == end) value.kind_ = Json::Kind::integer;
    return true;
  }

  bool parse_string(std::string& out) {
    ++place_;
    while (!at_end()) {
      const char c = text_[place_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        out.push_back(c);
        continue;
      }
      if (!parse_escape(out)) return false;
    }
    return false;
  }

  bool parse_escape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
    const char name = peek();
    ++place_;
    if (const std::size_t known = kNames.find(name); known != std::string_view::npos && name != '\0') {
      out.push_back(kValues[known]);
      return true;
    }
    std::uint32_t code = 0;
    if (name != 'u' || !parse_hex(code)) return false;
    if (code >= 0xdc00 && code < 0xe000) return false;
    if (code >= 0xd800 && code < 0xdc00) {
      std::uint32_t low = 0;
      if (!take("\\u") || !parse_hex(low) || low < 0xdc00 || low >= 0xe000) return false;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(code, out);
    return true;
  }

  bool parse_hex(std::uint32_t& code) noexcept {
    if (text_.size() - place_ < 4 || place_ > text_.size()) return false;
    const char* begin = text_.data() + place_;
    const auto result = std::from_chars(begin, begin + 4, code, 16);
    place_ += 4;
    return result.ec == std::errc() && result.ptr == begin + 4;
  }

  static void append_utf8(std::uint32_t code, std::string& out) {
    const auto add = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) return add(code);
    if (code < 0x800) {
      add(0xc0 | code >> 6);
    } else if (code < 0x10000) {
      add(0xe0 | code >> 12);
      add(0x80 | (code >> 6 & 0x3f));
    } else {
      add(0xf0 | code >> 18);
      add(0x80 | (code >> 12 & 0x3f));
      add(0x80 | (code >> 6 & 0x3f));
    }
    add(0x80 | (code & 0x3f));
  }

  std::string_view text_;
  std::size_t place_ = 0;
};

std::optional<Json> Json::parse(std::string_view text) { return JsonParser(text).run(); }

const Json* Json::find(std::string_view name) const noexcept {
  for (const auto& [known, value] : object_) {
    if (known == name) return &value;
  }
  return nullptr;
}

}  // namespace stun_ext::detail
