// A borrowed run of token ids and how two runs compare.
#pragma once

#include <algorithm>
#include <cstring>

#include "helium/types.h"

namespace helium {

struct TokenSpan {
  const Token* data = nullptr;
  std::int32_t size = 0;

  TokenSpan sub(std::int32_t first, std::int32_t count) const { return {data + first, count}; }
  TokenSpan clipped(std::int32_t first, std::int32_t count) const {
    return {data + first, std::min(count, size - first)};
  }
};

inline bool equal(TokenSpan a, TokenSpan b) {
  return a.size == b.size && std::memcmp(a.data, b.data, sizeof(Token) * a.size) == 0;
}

// Length of the longest common prefix, in tokens; two tokens per comparison.
inline std::int32_t common_prefix(TokenSpan a, TokenSpan b) {
  const std::int32_t size = std::min(a.size, b.size);
  std::int32_t i = 0;
  for (; i + 2 <= size; i += 2) {
    std::uint64_t x, y;
    std::memcpy(&x, a.data + i, sizeof x);
    std::memcpy(&y, b.data + i, sizeof y);
    if (x != y) return i + (a.data[i] == b.data[i]);
  }
  return i + (i < size && a.data[i] == b.data[i]);
}

// Lexicographic order, a prefix before what extends it: <0, 0 or >0.
inline int compare(TokenSpan a, TokenSpan b) {
  const std::int32_t common = common_prefix(a, b);
  if (common == a.size || common == b.size) return a.size - b.size;
  return a.data[common] < b.data[common] ? -1 : 1;
}

// 32-bit hash of a path: of the path before it, the tokens and the label of the last edge.
// Only miss diagnosis relies on it; a collision can misreport a reason, never a hit.
inline std::uint32_t path_hash(std::uint32_t before, TokenSpan span, LabelId label) {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;
  const auto mix = [](std::uint64_t h, std::uint64_t word) {
    return ((h << 29 | h >> 35) ^ word) * kMultiplier;
  };
  // Two lanes of two tokens a word, so that the multiplications do not wait for each other.
  std::uint64_t lanes[2] = {std::uint64_t{before} << 32 | std::uint32_t(label),
                            ~std::uint64_t(span.size)};
  std::int32_t i = 0;
  for (int lane = 0; i + 2 <= span.size; i += 2, lane ^= 1) {
    std::uint64_t word;
    std::memcpy(&word, span.data + i, sizeof word);
    lanes[lane] = mix(lanes[lane], word);
  }
  if (i < span.size) lanes[0] = mix(lanes[0], std::uint32_t(span.data[i]));
  const std::uint64_t h = mix(lanes[0], lanes[1]);
  return std::uint32_t((h ^ h >> 29) * kMultiplier >> 32);
}

}  // namespace helium
