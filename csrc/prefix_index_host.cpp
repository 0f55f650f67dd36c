// Host memory below the prefix index: what eviction keeps there, and what comes back ahead of use.
#include <algorithm>

#include "helium/check.h"
#include "helium/prefix_index.h"

namespace helium {
namespace {

// What a cached block or slot is worth by its place; more is kept longer.
int worth(Place place) {
  switch (place) {
    case Place::kUnindexed: return 0;
    case Place::kDead: return 1;
    case Place::kDuplicate: return 2;
    case Place::kTail: case Place::kRecent: return 3;
    case Place::kNextUse: return 4;
    default: return 5;
  }
}

}  // namespace

// --- slots --------------------------------------------------------------------------------------

Place PrefixIndex::slot_place(SlotId slot) const {
  const NodeId id = host_.node(slot);
  if (id == kNone) return Place::kUnindexed;
  const Node& node = tree_[id];
  if (node.front != kNone) return Place::kDuplicate;
  if (!tree_.is_leaf(id)) return Place::kInterior;
  return node.tag != kNone && !is_void(node) ? tags_.place(node.tag) : Place::kRecent;
}

void PrefixIndex::refresh_slot(NodeId id) {
  const SlotId slot = tree_[id].slot;
  if (slot == kNone || host_.is_locked(slot)) return;
  if (is_void(tree_[id])) {
    retag(id, kNone);  // and comes back here
    return;
  }
  const Place place = slot_place(slot);
  const TagId tag = tree_[id].tag;
  if (host_.queue().is_at(slot, place, tag)) return;
  host_.queue().take(slot);
  host_.queue().put(slot, place, tag);
}

void PrefixIndex::drop_slot(SlotId slot) {
  const NodeId id = host_.node(slot);
  if (id == kNone) return;
  tree_[id].slot = kNone;
  host_.set_node(slot, kNone);
  if (!host_.is_locked(slot)) {
    host_.queue().take(slot);
    host_.queue().put(slot, Place::kUnindexed, kNone);
  }
  if (tree_[id].front == kNone) leave_tree(id);
}

void PrefixIndex::forget_slots_below(NodeId top) {
  // Deepest first, so that only leaves are removed; nothing below has a block any more.
  for (NodeId id = top; !tree_.is_leaf(top);) {
    if (const NodeId child = tree_.first_child(id); child != kNone) {
      id = child;
      continue;
    }
    const NodeId parent = tree_[id].parent;
    drop_slot(tree_[id].slot);
    id = parent;
  }
}

SlotId PrefixIndex::free_slot_for(NodeId id, Place place) {
  const SlotId victim = host_.queue().victim(/*protected_first=*/false);
  if (victim == kNone) return kNone;
  const Place other = host_.queue().place(victim);
  if (other == Place::kInterior || worth(other) > worth(place)) return kNone;
  if (worth(other) == worth(place) && place != Place::kRecent) {
    const TagId mine = tree_[id].tag, its = tree_[host_.node(victim)].tag;
    if (mine == kNone || its == kNone || tags_.order(its) > tags_.order(mine)) return kNone;
  }
  if (const NodeId node = host_.node(victim); node != kNone) {
    ++stats_.num_slots_evicted[int(other)];
    if (tree_[node].front == kNone) history_.record_eviction(tree_[node].hash, other, now_s_);
    drop_slot(victim);
  }
  return victim;
}

bool PrefixIndex::demote(BlockId block, Place place) {
  const NodeId id = blocks_[block].node;
  if (tree_[id].slot != kNone) return true;
  if (host_.size() == 0 || tree_[id].num_tokens < options_.block_size) return false;
  // No plan reads it again, and nobody else ever did: not worth the link's time.
  if (place == Place::kDead) return false;
  // What this step writes or loads is not there yet when the step's stores run.
  if (blocks_[block].written >= step_) return false;
  const SlotId slot = free_slot_for(id, place);
  if (slot == kNone) return false;
  host_.lock(slot);
  host_.set_node(slot, id);
  tree_[id].slot = slot;
  moves_.stores.push_back({block, slot});
  ++stats_.num_stored;
  return true;
}

void PrefixIndex::lock_slots(const std::vector<SlotId>& slots) {
  for (const SlotId slot : slots) host_.lock(slot);
}

void PrefixIndex::load(const std::vector<BlockId>& blocks, const std::vector<SlotId>& slots) {
  HELIUM_CHECK(blocks.size() == slots.size(), blocks.size(), " blocks for ", slots.size(),
               " slots, expected as many of each");
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    HELIUM_CHECK(queue_.is_held(blocks[i]), "block ", blocks[i], " must be held to be loaded");
    HELIUM_CHECK(host_.is_locked(slots[i]), "slot ", slots[i], " must be locked to be loaded");
    moves_.loads.push_back({blocks[i], slots[i]});
    is_target_[blocks[i]] = true;
    ++stats_.num_loaded;
  }
}

void PrefixIndex::cancel_moves_to(BlockId block) {
  if (host_.size() == 0 || !is_target_[block]) return;
  is_target_[block] = false;
  for (std::vector<Move>* moves : {&moves_.loads, &moves_.prefetches}) {
    const auto is_same = [&](const Move& move) { return move.block == block; };
    moves->erase(std::remove_if(moves->begin(), moves->end(), is_same), moves->end());
  }
}

Moves PrefixIndex::take_moves() {
  for (const Move& move : moves_.loads) is_target_[move.block] = false;
  for (const Move& move : moves_.prefetches) is_target_[move.block] = false;
  return std::exchange(moves_, {});
}

void PrefixIndex::count_device_child(NodeId parent, std::int32_t sign) {
  if (host_.size() == 0) return;
  // A root or node that is new takes the place of one that left without children.
  if (parent >= NodeId(num_device_children_.size())) num_device_children_.resize(parent + 64, 0);
  num_device_children_[parent] += sign;
}

// --- prefetch -----------------------------------------------------------------------------------

void PrefixIndex::settle_prefetch(BlockId block, bool is_used) {
  if (host_.size() == 0 || !is_prefetched_[block]) return;
  is_prefetched_[block] = false;
  ++(is_used ? stats_.num_prefetches_used : stats_.num_prefetches_wasted);
}

bool PrefixIndex::prefetch_node(NodeId id) {
  const BlockId victim = queue_.victim(num_protected_ > options_.max_protected_blocks);
  if (victim == kNone) return false;
  const Place place = queue_.place(victim);
  const NodeId other = blocks_[victim].node;
  if (place == Place::kInterior || place == Place::kLeased) return false;
  // The engine may yet copy from what this step gave back, and copy or zero what it took.
  if (blocks_[victim].written >= step_ || released_[victim] >= step_) return false;
  if (other != kNone) {
    if (other == tree_[id].parent) return false;
    const TagId mine = tree_[id].tag, its = tree_[other].tag;
    const Place wanted = mine != kNone && !is_void(tree_[id]) ? tags_.place(mine) : Place::kRecent;
    if (place == Place::kNextUse) {
      // Only for what is needed before it.
      if (wanted != Place::kNextUse && wanted != Place::kLeased) return false;
      if (wanted == Place::kNextUse && tags_.order(its) >= tags_.order(mine)) return false;
    }
  }
  const SlotId slot = tree_[id].slot;
  host_.lock(slot);
  const BlockId block = evict(1).front();
  attach(block, id);
  is_target_[block] = is_prefetched_[block] = true;
  moves_.prefetches.push_back({block, slot});
  ++stats_.num_prefetched;
  release({block});
  return true;
}

std::int32_t PrefixIndex::prefetch(std::string_view name, TokenSpan tokens,
                                   std::int32_t max_blocks,
                                   const std::vector<BlockLabel>& labels) {
  std::int32_t num_loaded = 0;
  walk(name, tokens, tokens.size / options_.block_size, labels, [&](NodeId id) {
    if (tree_[id].front != kNone) return true;
    if (num_loaded >= max_blocks || !prefetch_node(id)) return false;
    ++num_loaded;
    return true;
  });
  if (num_loaded > 0) enforce_lease_budget();
  return num_loaded;
}

// --- integrity ----------------------------------------------------------------------------------

void PrefixIndex::check_host() const {
  host_.queue().check();
  std::int32_t num_used = 0;
  for (SlotId slot = 0; slot < host_.size(); ++slot) {
    const NodeId id = host_.node(slot);
    if (id != kNone) {
      ++num_used;
      HELIUM_CHECK(tree_[id].slot == slot, "slot ", slot, " holds node ", id, ", which names slot ",
                   tree_[id].slot);
    }
    if (host_.is_locked(slot)) continue;
    HELIUM_CHECK(host_.queue().is_at(slot, slot_place(slot), id == kNone ? kNone : tree_[id].tag),
                 "slot ", slot, " is at place ", int(host_.queue().place(slot)), ", belongs to ",
                 int(slot_place(slot)));
  }
  HELIUM_CHECK(host_.count(Place::kHeld) == std::int32_t(host_.locked().size()),
               host_.count(Place::kHeld), " slots are out of the order, ", host_.locked().size(),
               " are locked");
  for (const NodeId id : tree_.check()) {
    const Node& node = tree_[id];
    num_used -= node.slot != kNone;
    HELIUM_CHECK(node.front != kNone || node.slot != kNone, "node ", id, " has no copy anywhere");
    HELIUM_CHECK(node.front == kNone || tree_[node.parent].is_root ||
                     tree_[node.parent].front != kNone,
                 "node ", id, " has a block, its parent has none");
  }
  HELIUM_CHECK(num_used == 0, "slots and nodes differ by ", num_used);
}

}  // namespace helium
