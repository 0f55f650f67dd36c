// Lookup in the prefix index, and why a lookup fell short.
#include "helium/check.h"
#include "helium/prefix_index.h"

namespace helium {

BlockId PrefixIndex::written_block(NodeId id) const {
  const BlockId front = tree_[id].front;
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
  std::size_t label_cursor = 0;
  const auto label_of = [&](std::int32_t index) {
    while (label_cursor < labels.size() && labels[label_cursor].first < index) ++label_cursor;
    const bool has_label = label_cursor < labels.size() && labels[label_cursor].first == index;
    return has_label ? tree_.find_label(labels[label_cursor].second) : kNoLabel;
  };

  NodeId node = tree_.find_root(name);
  std::int32_t index = 0;
  LabelId label = label_of(0);
  while (node != kNone && index < last_full && label != kNone) {
    const NodeId child = tree_.find_child(node, label, tokens.sub(index * size, size));
    if (child == kNone) break;
    match.blocks.push_back(tree_[child].front);
    node = child;
    label = label_of(++index);
  }
  const std::int32_t num_full = index * size;
  match.num_tokens = match.miss_token = num_full;
  const TokenSpan rest = tokens.sub(num_full, std::min(size, max_tokens - num_full));
  if (rest.size <= 0) return match;

  TokenTree::Closest closest;
  if (node != kNone && label == kNoLabel) {
    closest = tree_.find_closest(node, rest, [](NodeId) { return true; });
    if (closest.common >= options_.min_partial_tokens) {
      // A copy runs before the forward pass, so it cannot read what this step writes.
      const TokenTree::Closest written = tree_.find_closest(
          node, rest, [this](NodeId id) { return written_block(id) != kNone; });
      if (written.common >= options_.min_partial_tokens) {
        match.blocks.push_back(written_block(written.node));
        match.num_tokens += written.common;
      }
    }
  }
  if (match.num_tokens < max_tokens) {
    const std::uint32_t path = node == kNone ? TokenTree::root_hash(name) : tree_[node].hash;
    explain(match, path, num_full, rest, closest, label, plan, num_static_tokens);
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
  if (closest.common > 0 && match.num_tokens == num_full &&
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
