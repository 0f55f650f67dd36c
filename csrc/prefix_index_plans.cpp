// Plans, tags and leases: what a change of a plan's knowledge does to the order of eviction.
#include "helium/check.h"
#include "helium/prefix_index.h"

namespace helium {

void PrefixIndex::count_tag(TagId tag, std::int32_t sign) {
  const Place place = tags_.place(tag);
  const std::int32_t delta = sign * tags_[tag].num_device_nodes;
  if (place == Place::kLeased) num_leased_ += delta;
  if (place == Place::kLeased || place == Place::kNextUse) num_protected_ += delta;
}

void PrefixIndex::count_device(NodeId id, std::int32_t sign) {
  const TagId tag = tree_[id].tag;
  if (tag == kNone) return;
  count_tag(tag, -1);
  tags_[tag].num_device_nodes += sign;
  count_tag(tag, +1);
}

void PrefixIndex::order_tag(TagId tag) {
  const Place place = tags_.place(tag);
  const Place queued = place == Place::kRecent ? Place::kDead : place;
  queue_.set_tag_order(tag, queued, tags_.order(tag));
  host_.queue().set_tag_order(tag, queued, tags_.order(tag));
}

void PrefixIndex::retag(NodeId id, TagId wanted) {
  Node& node = tree_[id];
  const TagId before = node.tag;
  if (before == wanted) return;
  const bool is_on_device = node.front != kNone;
  // The keeper may be queued under the old tag; it must leave before the tag's slot is reused.
  if (is_on_device) count_device(id, -1);
  node.tag = wanted;
  if (is_on_device) count_device(id, +1);
  if (wanted != kNone) {
    ++tags_[wanted].num_nodes;
  } else {
    node.is_shared = false;
  }
  if (before != kNone) --tags_[before].num_nodes;
  refresh_keeper(id);
  refresh_slot(id);
  if (before != kNone) tags_.release_if_unused(before);
}

void PrefixIndex::change_tag(TagId tag, const std::function<void(Tag&)>& change) {
  const Place was = tags_.place(tag);
  count_tag(tag, -1);
  if (tags_[tag].lease_until > 0) leases_.erase({tags_[tag].lease_until, tag});
  change(tags_[tag]);
  const Place now = tags_.place(tag);
  if (now == Place::kDead && was != Place::kDead) tags_.mark_dead(tag);
  if (tags_[tag].lease_until > 0) leases_.insert({tags_[tag].lease_until, tag});
  count_tag(tag, +1);
  order_tag(tag);
  if (now != was && (now == Place::kRecent || now == Place::kDead)) {
    // Blocks others use too, or whose lease is over, go back to the ordinary ones. The tag may be
    // gone after the last of them.
    const std::vector<SlotId> slots = host_.queue().tagged(tag);
    for (const BlockId block : queue_.tagged(tag)) refresh(block);
    for (const SlotId slot : slots) {
      const NodeId id = host_.node(slot);
      if (is_void(tree_[id])) retag(id, kNone);
    }
  }
}

TagId PrefixIndex::tag(std::int32_t plan, std::int32_t template_node, std::int32_t row) {
  const TagId tag = tags_.ensure(plan, template_node, row);
  order_tag(tag);
  return tag;
}

void PrefixIndex::set_uses(TagId tag, std::int32_t num_uses, std::uint32_t next_use) {
  HELIUM_CHECK(tags_.contains(tag), "tag ", tag, " is unknown; its plan may be closed");
  HELIUM_CHECK(num_uses >= 0, "pending uses must not be negative, got ", num_uses);
  change_tag(tag, [&](Tag& entry) {
    entry.num_uses = num_uses;
    entry.next_use = next_use;
  });
}

void PrefixIndex::close_plan(std::int32_t plan) {
  for (const TagId tag : tags_.close_plan(plan)) {
    change_tag(tag, [](Tag& entry) {
      entry.num_uses = 0;
      entry.lease_until = 0;
    });
    tags_.release_if_unused(tag);
  }
}

bool PrefixIndex::lease(TagId tag, double lease_s) {
  HELIUM_CHECK(tags_.contains(tag), "tag ", tag, " is unknown; its plan may be closed");
  HELIUM_CHECK(lease_s > 0, "a lease takes a positive time, got ", lease_s, " s");
  change_tag(tag, [&](Tag& entry) {
    entry.lease_s = lease_s;
    entry.lease_until = now_s_ + lease_s;
  });
  enforce_lease_budget();
  return tags_.contains(tag) && tags_[tag].lease_until > 0;
}

TagId PrefixIndex::lease_blocks(const std::vector<BlockId>& blocks, double lease_s) {
  const TagId tag = tags_.make_anonymous();
  order_tag(tag);
  change_tag(tag, [&](Tag& entry) {
    entry.lease_s = lease_s;
    entry.lease_until = now_s_ + lease_s;
  });
  for (const BlockId block : blocks) {
    const NodeId id = blocks_[block].node;
    if (id == kNone) continue;
    if (const TagId current = tree_[id].tag; current != kNone) {
      const Place place = tags_.place(current);
      if (place == Place::kLeased || place == Place::kNextUse) continue;
    }
    retag(id, tag);
  }
  if (tags_[tag].num_nodes == 0) {
    end_lease(tag);
    return kNone;
  }
  enforce_lease_budget();
  return tags_.contains(tag) && tags_[tag].lease_until > 0 ? tag : kNone;
}

void PrefixIndex::end_lease(TagId tag) {
  if (!tags_.contains(tag) || tags_[tag].lease_until == 0) return;
  change_tag(tag, [](Tag& entry) { entry.lease_until = 0; });
  tags_.release_if_unused(tag);
}

void PrefixIndex::enforce_lease_budget() {
  while (num_leased_ > options_.max_leased_blocks && !leases_.empty()) {
    ++stats_.num_leases_dropped;
    end_lease(leases_.begin()->second);
  }
}

void PrefixIndex::advance(double now_s) {
  ++step_;
  for (const SlotId slot : host_.unlock_all()) {
    const NodeId id = host_.node(slot);
    if (id != kNone && is_void(tree_[id])) retag(id, kNone);
    host_.queue().put(slot, slot_place(slot), id == kNone ? kNone : tree_[id].tag);
  }
  tell_time(now_s);
}

void PrefixIndex::tell_time(double now_s) {
  now_s_ = std::max(now_s_, now_s);
  while (!leases_.empty() && leases_.begin()->first <= now_s_) end_lease(leases_.begin()->second);
}

const Tag& PrefixIndex::tag_at(TagId tag) const {
  HELIUM_CHECK(tags_.contains(tag), "tag ", tag, " is unknown; its plan may be closed");
  return tags_[tag];
}

TagId PrefixIndex::tag_of(BlockId block) const {
  const NodeId id = blocks_[block].node;
  return id == kNone ? kNone : tree_[id].tag;
}

// --- integrity ----------------------------------------------------------------------------------

void PrefixIndex::check_integrity() const {
  queue_.check();
  check_host();
  const std::vector<NodeId> nodes = tree_.check();
  std::vector<std::int32_t> tag_nodes(tags_.num_slots(), 0), tag_device_nodes(tags_.num_slots(), 0);
  std::int32_t num_indexed = 0, num_held = 0;
  for (const NodeId id : nodes) {
    const Node& node = tree_[id];
    if (node.tag != kNone) {
      HELIUM_CHECK(tags_.contains(node.tag), "node ", id, " has the unknown tag ", node.tag);
      ++tag_nodes[node.tag];
      tag_device_nodes[node.tag] += node.front != kNone;
    }
    std::int32_t num_device_children = 0;
    for (NodeId child = tree_.first_child(id); child != kNone; child = tree_.next(child)) {
      num_device_children += tree_[child].front != kNone;
    }
    HELIUM_CHECK((num_device_children == 0) == is_device_leaf(id) &&
                     (host_.size() == 0 || num_device_children == num_device_children_[id]),
                 "node ", id, " has ", num_device_children, " children with blocks, counts others");
    if (node.front == kNone) continue;
    std::int32_t held = 0;
    bool seen_free = false;
    for (BlockId block = node.front;;) {
      HELIUM_CHECK(blocks_[block].node == id, "block ", block, " is in the ring of node ", id,
                   " but belongs to ", blocks_[block].node);
      HELIUM_CHECK(blocks_[blocks_[block].next].previous == block, "ring broken at block ", block);
      HELIUM_CHECK(!(queue_.is_held(block) && seen_free), "held block ", block,
                   " comes after a free one");
      HELIUM_CHECK(blocks_[block].written <= step_, "block ", block, " is written in the future");
      held += queue_.is_held(block);
      seen_free |= !queue_.is_held(block);
      ++num_indexed;
      block = blocks_[block].next;
      if (block == node.front) break;
    }
    HELIUM_CHECK(held == node.num_held, "node ", id, " counts ", node.num_held, " held blocks, has ",
                 held);
  }
  HELIUM_CHECK(num_indexed == num_indexed_, "the tree reaches ", num_indexed,
               " blocks, the count says ", num_indexed_);
  for (BlockId block = 0; block < options_.num_blocks; ++block) {
    num_indexed -= is_indexed(block);
    num_held += queue_.is_held(block);
    if (queue_.is_held(block)) continue;
    HELIUM_CHECK(queue_.is_at(block, where(block), tag_of(block)), "free block ", block,
                 " is at place ", int(queue_.place(block)), ", belongs to ", int(where(block)));
  }
  HELIUM_CHECK(num_indexed == 0, "the block map and the tree differ by ", num_indexed, " blocks");
  HELIUM_CHECK(num_held + queue_.num_free() == options_.num_blocks, "held ", num_held, " + free ",
               queue_.num_free(), " is not ", options_.num_blocks);
  std::int32_t num_leased = 0, num_protected = 0;
  std::size_t num_leases = 0;
  for (TagId tag = 0; tag < tags_.num_slots(); ++tag) {
    if (!tags_.contains(tag)) continue;
    HELIUM_CHECK(tags_[tag].num_nodes == tag_nodes[tag], "tag ", tag, " counts ",
                 tags_[tag].num_nodes, " nodes, has ", tag_nodes[tag]);
    HELIUM_CHECK(tags_[tag].num_device_nodes == tag_device_nodes[tag], "tag ", tag, " counts ",
                 tags_[tag].num_device_nodes, " nodes with blocks, has ", tag_device_nodes[tag]);
    const Place place = tags_.place(tag);
    if (place == Place::kLeased) num_leased += tag_device_nodes[tag];
    if (place == Place::kLeased || place == Place::kNextUse) num_protected += tag_device_nodes[tag];
    const bool is_leased = tags_[tag].lease_until > 0;
    num_leases += is_leased;
    HELIUM_CHECK(!is_leased || (leases_.count({tags_[tag].lease_until, tag}) > 0), "tag ", tag,
                 " is leased but will not expire");
  }
  HELIUM_CHECK(num_leases == leases_.size(), "leases and leased tags differ");
  HELIUM_CHECK(num_leased == num_leased_ && num_protected == num_protected_,
               "leased or protected nodes miscounted: ", num_leased_, ", ", num_protected_);
  HELIUM_CHECK(num_leased_ <= options_.max_leased_blocks, num_leased_, " nodes are leased, at most ",
               options_.max_leased_blocks, " may be");
}

}  // namespace helium
