#include "helium/prefix_index.h"

#include "helium/check.h"

namespace helium {
namespace {

bool is_protected(Place place) { return place == Place::kNextUse || place == Place::kLeased; }

}  // namespace

PrefixIndex::PrefixIndex(const Options& options)
    : options_(options),
      tree_(options.num_blocks, options.block_size),
      queue_(options.num_blocks),
      host_(options.num_slots),
      history_(options.num_blocks),
      blocks_(options.num_blocks),
      released_(options.num_slots > 0 ? options.num_blocks : 0),
      is_target_(options.num_slots > 0 ? options.num_blocks : 0),
      is_prefetched_(options.num_slots > 0 ? options.num_blocks : 0) {
  HELIUM_CHECK(options.min_partial_tokens >= 1, "min_partial_tokens must be positive, got ",
               options.min_partial_tokens);
  HELIUM_CHECK(options.max_leased_blocks >= 0 && options.max_protected_blocks >= 0,
               "block budgets must not be negative");
}

// --- index --------------------------------------------------------------------------------------

TagId PrefixIndex::tag_for(const std::vector<TagSegment>& tags, std::int32_t end,
                           std::size_t& cursor) {
  // A block belongs to the segment of its last token: only who shares that can reuse all of it.
  while (cursor < tags.size() && tags[cursor].end < end) ++cursor;
  return cursor < tags.size() ? tags[cursor].tag : kNone;
}

void PrefixIndex::check_tags(const std::vector<TagSegment>& tags) const {
  for (const TagSegment& segment : tags) {
    HELIUM_CHECK(segment.tag == kNone || tags_.contains(segment.tag), "tag ", segment.tag,
                 " is unknown; its plan may be closed");
  }
}

std::int32_t PrefixIndex::insert(BlockId parent, std::string_view name, TokenSpan tokens,
                                 std::int32_t first_block, const std::vector<BlockId>& blocks,
                                 const std::vector<BlockLabel>& labels,
                                 const std::vector<TagSegment>& tags) {
  const std::int32_t size = options_.block_size;
  HELIUM_CHECK(blocks.empty() ||
                   tokens.size > (std::int64_t(first_block + blocks.size()) - 1) * size,
               "blocks ", first_block, " to ", first_block + blocks.size(), " need more than ",
               tokens.size, " tokens");
  if (blocks.empty()) return 0;
  if (parent != kNone && !is_indexed(parent)) return 0;
  for (const BlockId block : blocks) {
    HELIUM_CHECK(queue_.is_held(block), "block ", block, " must be held to be indexed");
  }
  check_tags(tags);
  NodeId node = parent == kNone ? tree_.ensure_root(name) : blocks_[parent].node;
  std::size_t tag_cursor = 0, label_cursor = 0;
  std::int32_t index = first_block;
  for (const BlockId block : blocks) {
    const TokenSpan span = tokens.clipped(index * size, size);
    while (label_cursor < labels.size() && labels[label_cursor].first < index) ++label_cursor;
    const bool has_label = label_cursor < labels.size() && labels[label_cursor].first == index;
    const LabelId label = has_label ? tree_.ensure_label(labels[label_cursor].second) : kNoLabel;
    NodeId child = tree_.find_child(node, label, span);
    const TagId tag = tag_for(tags, index * size + span.size, tag_cursor);
    if (child == kNone) {
      child = tree_.add_child(node, label, span);
      if (tree_[node].is_root && span.size == size) {
        history_.record_first_block(path_hash(0, span, kNoLabel), tree_[node].hash);
      }
      retag(child, tag);
      attach(block, child);
      forget_prefix_of(child);
    } else {
      attach(block, child);
      claim_node(child, tag);
    }
    node = child;
    ++index;
  }
  enforce_lease_budget();
  return std::int32_t(blocks.size());
}

void PrefixIndex::attach(BlockId block, NodeId node) {
  if (blocks_[block].node == node) return;
  HELIUM_CHECK(!is_indexed(block), "block ", block, " is indexed for other tokens already");
  blocks_[block].node = node;
  blocks_[block].written = step_;
  ++num_indexed_;
  ++tree_[node].num_held;
  const BlockId keeper = tree_[node].front;
  ring_insert(block, node, /*at_front=*/true);
  if (keeper != kNone) {
    refresh(keeper);
    return;
  }
  count_device(node, +1);
  count_device_child(node, 0);
  refresh_slot(node);
  const NodeId parent = tree_[node].parent;
  count_device_child(parent, +1);
  if (!tree_[parent].is_root) refresh_keeper(parent);  // a leaf no more
}

void PrefixIndex::detach(BlockId block) {
  const NodeId id = blocks_[block].node;
  const bool is_free = !queue_.is_held(block);
  settle_prefetch(block, /*is_used=*/false);
  if (!is_free) --tree_[id].num_held;
  ring_remove(block);
  blocks_[block].node = kNone;
  --num_indexed_;
  if (is_free) refresh(block);
  if (tree_[id].front != kNone) {
    refresh_keeper(id);
    return;
  }
  count_device(id, -1);
  const NodeId parent = tree_[id].parent;
  count_device_child(parent, -1);
  if (tree_[id].slot != kNone) {
    refresh_slot(id);
    if (!tree_[parent].is_root) refresh_keeper(parent);
    return;
  }
  forget_slots_below(id);
  leave_tree(id);
}

void PrefixIndex::leave_tree(NodeId id) {
  const NodeId parent = tree_[id].parent;
  const bool has_copies = !tree_[parent].is_root;
  retag(id, kNone);
  tree_.remove_leaf(id);
  if (!has_copies) return;
  refresh_keeper(parent);
  refresh_slot(parent);
}

bool PrefixIndex::forget(BlockId block) {
  const NodeId node = blocks_[block].node;
  if (node == kNone) return false;
  if (blocks_[block].next == block) forget_below(node);
  detach(block);
  return true;
}

bool PrefixIndex::forget_partial(BlockId block) {
  const NodeId node = blocks_[block].node;
  return node != kNone && tree_[node].num_tokens < options_.block_size && forget(block);
}

void PrefixIndex::forget_below(NodeId top) {
  // Nodes with blocks are below nodes with blocks. Deepest first, so that children go first.
  if (is_device_leaf(top)) return;
  std::vector<NodeId> below{top};
  for (std::size_t i = 0; i < below.size(); ++i) {
    if (is_device_leaf(below[i])) continue;
    for (NodeId id = tree_.first_child(below[i]); id != kNone; id = tree_.next(id)) {
      if (tree_[id].front != kNone) below.push_back(id);
    }
  }
  for (std::size_t i = below.size() - 1; i > 0; --i) {
    const NodeId id = below[i];
    while (blocks_[tree_[id].front].next != tree_[id].front) detach(tree_[id].front);
    detach(tree_[id].front);
  }
}

void PrefixIndex::forget_prefix_of(NodeId id) {
  // A free partial tail that the new node extends can serve nothing any more. Longer ones covered
  // shorter ones when they came, so it can only be the sibling just before.
  const NodeId before = tree_[id].label == kNoLabel ? tree_.previous(id) : kNone;
  if (before == kNone || tree_[before].label != kNoLabel || tree_[before].num_held > 0) return;
  const TokenSpan shorter = tree_.tokens(before);
  if (shorter.size >= tree_.tokens(id).size) return;
  if (common_prefix(shorter, tree_.tokens(id)) < shorter.size) return;
  while (blocks_[tree_[before].front].next != tree_[before].front) detach(tree_[before].front);
  detach(tree_[before].front);
}

void PrefixIndex::claim(const std::vector<BlockId>& blocks, const std::vector<TagSegment>& tags) {
  check_tags(tags);
  std::size_t cursor = 0;
  std::int32_t end = 0;
  for (const BlockId block : blocks) {
    end += options_.block_size;
    const NodeId id = blocks_[block].node;
    if (id == kNone) continue;
    claim_node(id, tag_for(tags, end, cursor));
  }
  enforce_lease_budget();
}

void PrefixIndex::claim_node(NodeId id, TagId wanted) {
  const TagId current = tree_[id].tag;
  if (wanted == current) return;
  const bool same_plan =
      wanted != kNone && current != kNone && tags_[wanted].plan == tags_[current].plan;
  if (!same_plan && !tree_[id].is_shared) {
    tree_[id].is_shared = true;
    refresh_keeper(id);
  }
  if (wanted == kNone || !is_protected(tags_.place(wanted))) return;
  if (const TagId tag = tree_[id].tag; tag != kNone) {
    const Place place = tags_.place(tag);
    if (place == Place::kLeased) return;
    if (place == Place::kNextUse && tags_[tag].next_use <= tags_[wanted].next_use) return;
  }
  retag(id, wanted);
}

// --- rings --------------------------------------------------------------------------------------

void PrefixIndex::ring_insert(BlockId block, NodeId id, bool at_front) {
  BlockId& front = tree_[id].front;
  if (front == kNone) {
    front = blocks_[block].next = blocks_[block].previous = block;
    return;
  }
  const BlockId last = blocks_[front].previous;
  blocks_[block].next = front;
  blocks_[block].previous = last;
  blocks_[last].next = block;
  blocks_[front].previous = block;
  if (at_front) front = block;
}

void PrefixIndex::ring_remove(BlockId block) {
  Block& entry = blocks_[block];
  BlockId& front = tree_[entry.node].front;
  if (entry.next == block) {
    front = kNone;
  } else {
    blocks_[entry.previous].next = entry.next;
    blocks_[entry.next].previous = entry.previous;
    if (front == block) front = entry.next;
  }
  entry.next = entry.previous = kNone;
}

// --- places -------------------------------------------------------------------------------------

bool PrefixIndex::is_void(const Node& node) const {
  if (node.tag == kNone) return false;
  const Place place = tags_.place(node.tag);
  return place == Place::kRecent || (place == Place::kDead && node.is_shared);
}

Place PrefixIndex::where(BlockId block) const {
  const NodeId id = blocks_[block].node;
  if (id == kNone) return Place::kUnindexed;
  const Node& node = tree_[id];
  if (blocks_[block].next != block && (node.num_held > 0 || node.front != block)) {
    return Place::kDuplicate;
  }
  if (!is_device_leaf(id)) return Place::kInterior;
  if (node.tag != kNone && !is_void(node)) return tags_.place(node.tag);
  return node.num_tokens < options_.block_size ? Place::kTail : Place::kRecent;
}

Place PrefixIndex::settle(BlockId block) {
  const NodeId id = blocks_[block].node;
  if (id != kNone && is_void(tree_[id])) retag(id, kNone);
  return where(block);
}

void PrefixIndex::refresh(BlockId block) {
  if (queue_.is_held(block)) return;
  const Place place = settle(block);
  const NodeId id = blocks_[block].node;
  const TagId tag = id == kNone ? kNone : tree_[id].tag;
  if (queue_.is_at(block, place, tag)) return;
  queue_.take(block);
  queue_.put(block, place, tag);
}

void PrefixIndex::refresh_keeper(NodeId node) {
  if (tree_[node].front != kNone) refresh(tree_[node].front);
}

void PrefixIndex::release(const std::vector<BlockId>& blocks) {
  std::vector<BlockId> unindexed;
  for (const BlockId block : blocks) {
    HELIUM_CHECK(queue_.is_held(block), "block ", block, " is free already");
    queue_.stamp(block);
    if (host_.size() > 0) released_[block] = step_;
    const NodeId id = blocks_[block].node;
    if (id == kNone) {
      unindexed.push_back(block);
      continue;
    }
    Node& node = tree_[id];
    if (--node.num_held > 0) {
      ring_remove(block);
      ring_insert(block, id, /*at_front=*/false);
    }
    if (const TagId tag = node.tag; tag != kNone && tags_[tag].lease_until > 0) {
      const double until = now_s_ + tags_[tag].lease_s;
      if (until > tags_[tag].lease_until) {
        change_tag(tag, [&](Tag& entry) { entry.lease_until = until; });
      }
    }
    const Place place = settle(block);
    queue_.put(block, place, tree_[id].tag);
  }
  // Put one by one at the front, so from the last to the first.
  for (auto block = unindexed.rbegin(); block != unindexed.rend(); ++block) {
    queue_.put(*block, Place::kUnindexed, kNone);
  }
}

void PrefixIndex::acquire(const std::vector<BlockId>& blocks) {
  for (const BlockId block : blocks) {
    queue_.take(block);
    const NodeId id = blocks_[block].node;
    if (id == kNone) continue;
    const BlockId keeper = tree_[id].front;
    ++tree_[id].num_held;
    if (keeper != block) {
      ring_remove(block);
      ring_insert(block, id, /*at_front=*/true);
      refresh(keeper);
    }
    settle_prefetch(block, /*is_used=*/true);
  }
}

std::vector<BlockId> PrefixIndex::evict(std::int32_t count) {
  HELIUM_CHECK(count >= 0 && count <= queue_.num_free(), "asked for ", count, " blocks, only ",
               queue_.num_free(), " are free");
  std::vector<BlockId> taken;
  taken.reserve(count);
  while (std::int32_t(taken.size()) < count) {
    const BlockId block = queue_.victim(num_protected_ > options_.max_protected_blocks);
    const Place place = queue_.place(block);
    if (const NodeId id = blocks_[block].node; id != kNone) {
      ++stats_.num_evicted[int(place)];
      if (place != Place::kDuplicate) {
        if (demote(block, place)) {
          ++stats_.num_demoted[int(place)];
        } else if (tree_[id].num_tokens == options_.block_size) {
          history_.record_eviction(tree_[id].hash, place, now_s_);
        }
      }
      forget(block);
    }
    cancel_moves_to(block);
    queue_.take(block);
    blocks_[block].written = step_;  // as far as anything reads it, by whoever gets it now
    taken.push_back(block);
  }
  return taken;
}

void PrefixIndex::reset() {
  tree_.clear();
  history_.clear();
  leases_.clear();
  std::vector<BlockId> free = queue_.free_blocks();
  std::sort(free.begin(), free.end());
  for (const BlockId block : free) queue_.take(block);
  for (Block& block : blocks_) block = Block{};
  for (const BlockId block : free) queue_.put_unindexed_last(block);
  host_.clear();
  num_device_children_.clear();
  is_target_.assign(is_target_.size(), false);
  is_prefetched_.assign(is_prefetched_.size(), false);
  moves_ = {};
  num_indexed_ = num_leased_ = num_protected_ = 0;
  for (TagId tag = 0; tag < tags_.num_slots(); ++tag) {
    if (!tags_.contains(tag)) continue;
    tags_[tag].num_nodes = tags_[tag].num_device_nodes = 0;
    tags_[tag].lease_until = 0;
    tags_.release_if_unused(tag);
  }
  for (TagId tag = 0; tag < tags_.num_slots(); ++tag) {
    if (tags_.contains(tag)) order_tag(tag);
  }
}

std::size_t PrefixIndex::num_bytes() const {
  return tree_.num_bytes() + queue_.num_bytes() + tags_.num_bytes() + history_.num_bytes() +
         host_.num_bytes() +
         blocks_.capacity() * sizeof(Block);
}

}  // namespace helium
