// Template tags: which template node of which plan and row a cached block belongs to, how many
// pending calls will still read it, when the next one comes, and whether it is leased.
//
// All blocks of one segment of one row share a tag, so plans are updated per tag, not per block.
// Source: Helium, §4-5 (proactive caching, next use from the plan).
#pragma once

#include <tuple>
#include <unordered_map>
#include <vector>

#include "helium/types.h"

namespace helium {

struct Tag {
  std::int32_t plan = kNone;  // kNone: made for a lease of ordinary blocks
  std::int32_t template_node = kNone;
  std::int32_t row = kNone;   // kNone: shared by all rows
  std::int32_t num_nodes = 0;
  std::int32_t num_device_nodes = 0;  // those with a block on the device
  std::int32_t num_uses = 0;  // pending calls that will read it
  std::uint32_t next_use = 0; // position in the soft schedule of the nearest of them
  double lease_until = 0;     // 0: not leased
  double lease_s = 0;         // what a use renews it by
  std::uint64_t died = 0;     // order of death among tags without use
  bool is_open = false;       // its plan may still name it
  bool is_used = false;       // the slot holds a tag
};

class TemplateTags {
 public:
  // Tag of (plan, template node, row), made on first sight.
  TagId ensure(std::int32_t plan, std::int32_t template_node, std::int32_t row);
  // Tag of its own for a lease of ordinary blocks.
  TagId make_anonymous();
  // Closes all tags of a plan; returns them.
  std::vector<TagId> close_plan(std::int32_t plan);
  // Forgets a tag that is closed and has no node left; returns whether it did.
  bool release_if_unused(TagId tag);

  Tag& operator[](TagId tag) { return tags_[tag]; }
  const Tag& operator[](TagId tag) const { return tags_[tag]; }
  bool contains(TagId tag) const {
    return tag >= 0 && tag < std::int32_t(tags_.size()) && tags_[tag].is_used;
  }
  // Marks the moment a tag lost its last use, for the order among dead ones.
  void mark_dead(TagId tag) { tags_[tag].died = ++num_deaths_; }
  // kLeased, kNextUse, kDead, or kRecent for an anonymous tag without lease.
  Place place(TagId tag) const;
  // Order among tags of the same place, smaller given up first.
  std::uint64_t order(TagId tag) const;
  std::int32_t size() const { return std::int32_t(tags_.size() - free_.size()); }
  std::int32_t num_slots() const { return std::int32_t(tags_.size()); }
  std::size_t num_bytes() const;

 private:
  using Key = std::tuple<std::int32_t, std::int32_t, std::int32_t>;
  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };
  TagId allocate();

  std::uint64_t num_deaths_ = 0;
  std::vector<Tag> tags_;
  std::vector<TagId> free_;
  std::unordered_map<Key, TagId, KeyHash> by_key_;
  std::unordered_map<std::int32_t, std::vector<TagId>> by_plan_;
};

}  // namespace helium
