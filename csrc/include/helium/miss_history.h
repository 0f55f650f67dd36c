// A bounded memory of what left the cache, so that a lookup can say why it fell short.
//
// Two direct-mapped tables of 8-byte entries: paths that were evicted (why and when) and, for first
// blocks, the namespace that last cached the same tokens. Entries overwrite each other; an answer
// is a diagnosis and never decides a hit.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "helium/types.h"

namespace helium {

enum class MissReason : std::uint8_t {
  kNone,            // everything that may be reused was found
  kNeverSeen,
  kEvicted,         // was cached, gone while nothing known wanted it
  kOtherNamespace,  // cached under another salt, LoRA or model
  kTemplateDrift,   // leaves the plan's static text at some token
  kBelowBlock,      // the shared run is too short to be worth a block copy
  kCapacity,        // was cached and still wanted by a plan, but the pool was too small
};

class MissHistory {
 public:
  explicit MissHistory(std::int32_t num_blocks)
      : evicted_(power_of_two(num_blocks)),
        first_blocks_(power_of_two(std::min(num_blocks / 8 + 1, 4096))) {}

  struct Eviction {
    Place place;   // what the block was when it was given up
    double time_s;
  };

  void record_eviction(std::uint32_t path, Place place, double time_s) {
    evicted_[path & (evicted_.size() - 1)] = {path, std::uint32_t(place) << 28 | tick(time_s)};
  }
  std::optional<Eviction> find_eviction(std::uint32_t path) const {
    const Entry& entry = evicted_[path & (evicted_.size() - 1)];
    if (entry.value == 0 || entry.key != path) return std::nullopt;
    return Eviction{Place(entry.value >> 28), (entry.value & kMaxTick) * kTickSeconds};
  }

  void record_first_block(std::uint32_t content, std::uint32_t name) {
    first_blocks_[content & (first_blocks_.size() - 1)] = {content, name};
  }
  bool is_elsewhere(std::uint32_t content, std::uint32_t name) const {
    const Entry& entry = first_blocks_[content & (first_blocks_.size() - 1)];
    return entry.key == content && entry.value != 0 && entry.value != name;
  }

  void clear() {
    std::fill(evicted_.begin(), evicted_.end(), Entry{});
    std::fill(first_blocks_.begin(), first_blocks_.end(), Entry{});
  }
  std::size_t num_bytes() const {
    return (evicted_.capacity() + first_blocks_.capacity()) * sizeof(Entry);
  }

 private:
  static std::size_t power_of_two(std::int32_t at_least) {
    std::size_t size = 1;
    while (size < std::size_t(at_least)) size *= 2;
    return size;
  }
  static constexpr double kTickSeconds = 0.01;
  static constexpr std::uint32_t kMaxTick = (1u << 28) - 1;  // 31 days, then it saturates
  static std::uint32_t tick(double time_s) {
    return std::uint32_t(std::min(std::max(time_s / kTickSeconds, 0.0), double(kMaxTick)));
  }
  struct Entry {
    std::uint32_t key = 0;
    std::uint32_t value = 0;
  };
  std::vector<Entry> evicted_;
  std::vector<Entry> first_blocks_;
};

}  // namespace helium
