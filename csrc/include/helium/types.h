// Ids and small values shared by the parts of the prefix index.
#pragma once

#include <cstdint>

namespace helium {

using Token = std::int32_t;
using BlockId = std::int32_t;
using SlotId = std::int32_t;  // a block's place in host memory
using NodeId = std::int32_t;
using TagId = std::int32_t;
using LabelId = std::int32_t;

inline constexpr std::int32_t kNone = -1;
inline constexpr LabelId kNoLabel = 0;

// Where a block (or, on the host, a slot) is. Free places are listed in the order in which they give up blocks.
enum class Place : std::uint8_t {
  kHeld,       // some request uses it
  kUnindexed,  // free, holds nothing that can be found
  kDuplicate,  // free, another copy of the same node is held or comes first
  kTail,       // free, a partial block of ordinary traffic
  kDead,       // free, its plan has no more use for it
  kRecent,     // free, ordinary: least recently used first
  kNextUse,    // free, a plan will read it: furthest next use first
  kLeased,     // free, softly pinned: earliest expiry first
  kInterior,   // free, kept by its children: never taken before them
};
inline constexpr int kNumPlaces = 9;

}  // namespace helium
