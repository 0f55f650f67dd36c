// Lookup in the prefix index, and why a lookup fell short.
#include "helium/check.h"
#include "helium/prefix_index.h"

namespace helium {

BlockId PrefixIndex::written_block(NodeId id) const {
  const BlockId front = tree_[id].front;
  if (front == kNone) return kNone;
  for (BlockId block = front;;) {
    if (blocks_[block].written < step_) return block;
    block = blocks_[block].next;
    if (block == front) return kNone;
  }
}

Match PrefixIndex::match(std::string_view name, TokenSpan tokens, std::int32_t max_tokens,
                         const std::vector<BlockLabel>& labels, std::int32_t plan,
                         std::int32_t num_static_tokens) const {
  HELIUM_CHECK(max_tokens <= tokens.size, "cannot match ", max_tokens, " of ", tokens.size,
               " tokens");
  Match match;
  const std::int32_t size = options_.block_size;
  const std::int32_t last_full = max_tokens / size;
  match.blocks.reserve(last_full + 1);
  const Walk end = walk(name, tokens, last_full, labels, [&](NodeId id) {
    if (tree_[id].front != kNone) {
      match.blocks.push_back(tree_[id].front);
    } else {
      match.slots.push_back(tree_[id].slot);
    }
    return true;
  });
  match.num_tokens = std::int32_t(match.blocks.size()) * size;
  match.num_host_tokens = std::int32_t(match.slots.size()) * size;
  const std::int32_t num_full = end.num_blocks * size;
  match.miss_token = num_full;
  const TokenSpan rest = tokens.sub(num_full, std::min(size, max_tokens - num_full));
  if (rest.size <= 0) return match;

  TokenTree::Closest closest;
  if (end.node != kNone && end.label == kNoLabel) {
    closest = tree_.find_closest(end.node, rest, [](NodeId) { return true; });
    if (closest.common >= options_.min_partial_tokens) {
      // A copy runs before the forward pass, so it cannot read what this step writes.
      TokenTree::Closest written;
      if (match.slots.empty()) {
        written = tree_.find_closest(end.node, rest,
                                     [this](NodeId id) { return written_block(id) != kNone; });
      }
      const TokenTree::Closest stored =
          host_.size() == 0 ? TokenTree::Closest{}
                            : tree_.find_closest(end.node, rest, [this](NodeId id) {
                                return tree_[id].slot != kNone;
                              });
      if (stored.common >= options_.min_partial_tokens && stored.common > written.common) {
        match.slots.push_back(tree_[stored.node].slot);
        match.num_host_tokens += stored.common;
      } else if (written.common >= options_.min_partial_tokens) {
        match.blocks.push_back(written_block(written.node));
        match.num_tokens += written.common;
      }
      const std::int32_t num_pending =
          num_full + closest.common - match.num_tokens - match.num_host_tokens;
      if (num_pending > 0 && tree_[closest.node].front != kNone) {
        match.num_pending_tokens = num_pending;
      }
    }
  }
  if (match.num_tokens + match.num_host_tokens < max_tokens) {
    const std::uint32_t path =
        end.node == kNone ? TokenTree::root_hash(name) : tree_[end.node].hash;
    explain(match, path, num_full, rest, closest, end.label, plan, num_static_tokens);
  }
  return match;
}

void PrefixIndex::explain(Match& match, std::uint32_t path, std::int32_t num_full, TokenSpan rest,
                          TokenTree::Closest closest, LabelId label, std::int32_t plan,
                          std::int32_t num_static_tokens) const {
  match.miss_token = num_full + closest.common;
  const bool is_full = rest.size == options_.block_size;
  if (is_full && label != kNone) {
    const auto gone = history_.find_eviction(path_hash(path, rest, label));
    if (gone) {
      const bool was_wanted = gone->place == Place::kNextUse || gone->place == Place::kLeased;
      match.reason = was_wanted ? MissReason::kCapacity : MissReason::kEvicted;
      match.evicted_as = gone->place;
      match.evicted_ago_s = std::max(now_s_ - gone->time_s, 0.0);
      return;
    }
  }
  if (closest.common > 0 && plan != kNone && match.miss_token < num_static_tokens) {
    const TagId tag = tree_[closest.node].tag;
    if (tag != kNone && tags_[tag].plan == plan) {
      match.reason = MissReason::kTemplateDrift;
      return;
    }
  }
  if (closest.common > 0 && match.num_tokens + match.num_host_tokens == num_full &&
      (closest.common < options_.min_partial_tokens || closest.common == rest.size)) {
    match.reason = MissReason::kBelowBlock;
    return;
  }
  if (num_full == 0 && is_full && closest.common == 0) {
    if (history_.is_elsewhere(path_hash(0, rest, kNoLabel), path)) {
      match.reason = MissReason::kOtherNamespace;
      return;
    }
  }
  match.reason = MissReason::kNeverSeen;
}

bool PrefixIndex::covers(BlockId parent, std::string_view name, TokenSpan tail) const {
  NodeId node = kNone;
  if (parent == kNone) {
    node = tree_.find_root(name);
  } else {
    node = blocks_[parent].node;
  }
  if (node == kNone) return false;
  return tree_.find_closest(node, tail, [](NodeId) { return true; }).common == tail.size;
}

}  // namespace helium
