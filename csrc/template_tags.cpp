#include "helium/template_tags.h"

#include <cstring>

#include "helium/check.h"

namespace helium {

std::size_t TemplateTags::KeyHash::operator()(const Key& key) const {
  const auto& [plan, template_node, row] = key;
  std::uint64_t h = std::uint32_t(plan);
  for (const std::int32_t part : {template_node, row}) {
    h = ((h << 27 | h >> 37) ^ std::uint32_t(part)) * 0x9E3779B97F4A7C15ull;
  }
  return h ^ h >> 32;
}

TagId TemplateTags::allocate() {
  TagId tag;
  if (free_.empty()) {
    tag = TagId(tags_.size());
    tags_.emplace_back();
  } else {
    tag = free_.back();
    free_.pop_back();
  }
  tags_[tag] = Tag{};
  tags_[tag].is_used = true;
  return tag;
}

TagId TemplateTags::ensure(std::int32_t plan, std::int32_t template_node, std::int32_t row) {
  HELIUM_CHECK(plan >= 0 && template_node >= 0, "a plan and a template node are not negative, got ",
               plan, " and ", template_node);
  const auto [entry, is_new] = by_key_.try_emplace({plan, template_node, row}, kNone);
  if (is_new) {
    const TagId tag = allocate();
    tags_[tag].plan = plan;
    tags_[tag].template_node = template_node;
    tags_[tag].row = row;
    tags_[tag].is_open = true;
    entry->second = tag;
    by_plan_[plan].push_back(tag);
  }
  return entry->second;
}

TagId TemplateTags::make_anonymous() { return allocate(); }

std::vector<TagId> TemplateTags::close_plan(std::int32_t plan) {
  const auto found = by_plan_.find(plan);
  if (found == by_plan_.end()) return {};
  std::vector<TagId> closed = std::move(found->second);
  by_plan_.erase(found);
  for (const TagId tag : closed) {
    by_key_.erase({plan, tags_[tag].template_node, tags_[tag].row});
    tags_[tag].is_open = false;
  }
  return closed;
}

bool TemplateTags::release_if_unused(TagId tag) {
  const Tag& entry = tags_[tag];
  if (!entry.is_used || entry.num_nodes > 0 || entry.is_open || entry.lease_until > 0) return false;
  tags_[tag] = Tag{};
  free_.push_back(tag);
  return true;
}

Place TemplateTags::place(TagId tag) const {
  const Tag& entry = tags_[tag];
  if (entry.lease_until > 0) return Place::kLeased;
  if (entry.num_uses > 0) return Place::kNextUse;
  return entry.plan == kNone ? Place::kRecent : Place::kDead;
}

std::uint64_t TemplateTags::order(TagId tag) const {
  const Tag& entry = tags_[tag];
  switch (place(tag)) {
    case Place::kLeased: {
      std::uint64_t bits;  // of a positive double: same order
      static_assert(sizeof bits == sizeof entry.lease_until);
      std::memcpy(&bits, &entry.lease_until, sizeof bits);
      return bits;
    }
    case Place::kNextUse:
      // Furthest first: calls of one rank run row by row, and what all rows share comes next.
      return ~(std::uint64_t{entry.next_use} << 32 | std::uint32_t(entry.row + 1));
    default: return entry.died;
  }
}

std::size_t TemplateTags::num_bytes() const {
  return tags_.capacity() * sizeof(Tag) +
         by_key_.size() * (sizeof(Key) + 3 * sizeof(void*)) + free_.capacity() * sizeof(TagId);
}

}  // namespace helium
