// The templated radix tree itself: paths of token ids, one node per KV block.
//
// A node carries at most `block_size` tokens; siblings may share leading tokens, so nodes are
// never split. Children of a node are a treap ordered by (label, tokens): an exact match and the
// longest common prefix both take O(log siblings) comparisons, whatever the siblings share.
// Priorities are a hash of the node id, so the shape does not depend on the order of insertion.
//
// Source: Helium, §5 (templated radix tree); node-per-block and the treap are ours.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "helium/token_span.h"

namespace helium {

struct Node {
  NodeId parent = kNone;
  NodeId children = kNone;  // root of the treap of children; next free node when unused
  NodeId left = kNone;      // the node's own links among its siblings
  NodeId right = kNone;
  NodeId up = kNone;
  BlockId front = kNone;  // first block of the node's ring of blocks
  SlotId slot = kNone;  // its copy in host memory
  std::int32_t num_held = 0;
  TagId tag = kNone;
  LabelId label = kNoLabel;
  std::uint32_t hash = 0;
  std::uint16_t num_tokens = 0;  // 0 for roots and unused nodes
  bool is_root = false;
  bool is_shared = false;  // used by more than the plan of its tag
};
static_assert(sizeof(Node) == 48);

class TokenTree {
 public:
  TokenTree(std::int32_t num_blocks, std::int32_t block_size);

  // Root of a namespace, or kNone. Namespaces are opaque: model, LoRA and cache salt.
  NodeId find_root(std::string_view name) const;
  NodeId ensure_root(std::string_view name);
  // Path hash of a namespace's root, whether or not it is there.
  static std::uint32_t root_hash(std::string_view name) {
    return std::uint32_t(std::hash<std::string_view>{}(name) | 1);
  }

  // Label of an edge for extra keys (multimodal content), or kNone when no edge has it.
  LabelId find_label(std::string_view text) const;
  // Same, making a new one for an edge the caller is about to add; it goes with its last edge.
  LabelId ensure_label(std::string_view text);

  // Child that carries exactly these tokens under this label, or kNone. O(log siblings).
  NodeId find_child(NodeId parent, LabelId label, TokenSpan tokens) const;

  struct Closest {
    NodeId node = kNone;
    std::int32_t common = 0;  // tokens shared with the asked ones
  };
  // Unlabelled child with the longest common prefix of at least one token among those `usable`.
  template <typename Usable>
  Closest find_closest(NodeId parent, TokenSpan tokens, Usable usable) const;

  // Adds a child; the caller has checked that it is not there.
  NodeId add_child(NodeId parent, LabelId label, TokenSpan tokens);
  // Removes a childless node; a namespace whose root has no child left goes with it.
  void remove_leaf(NodeId node);

  Node& operator[](NodeId id) { return nodes_[id]; }
  const Node& operator[](NodeId id) const { return nodes_[id]; }
  TokenSpan tokens(NodeId id) const {
    return {tokens_.data() + std::size_t(id) * block_size_, nodes_[id].num_tokens};
  }
  NodeId previous(NodeId id) const { return step(id, &Node::left, &Node::right); }
  NodeId next(NodeId id) const { return step(id, &Node::right, &Node::left); }
  bool is_leaf(NodeId id) const { return nodes_[id].children == kNone; }
  // First child in order, for walks; kNone for a leaf.
  NodeId first_child(NodeId id) const;

  std::int32_t num_nodes() const { return num_nodes_; }  // without roots
  std::int32_t num_roots() const { return std::int32_t(roots_.size()); }
  std::int32_t block_size() const { return block_size_; }
  std::size_t num_bytes() const;  // without the tokens
  void clear();

  // Proves order, links, priorities, hashes and counts; raises CheckError. Returns the live nodes.
  std::vector<NodeId> check() const;

 private:
  static std::uint32_t priority(NodeId id);
  int compare_key(NodeId id, LabelId label, TokenSpan tokens) const;
  NodeId step(NodeId id, NodeId Node::*toward, NodeId Node::*away) const;
  NodeId allocate();
  void replace_in_parent(NodeId old_node, NodeId new_node);
  void rotate_up(NodeId id);

  struct Label {
    std::string text;
    std::int32_t num_edges = 0;
  };

  std::int32_t block_size_;
  std::int32_t num_nodes_ = 0;
  NodeId free_ = kNone;
  std::vector<Node> nodes_;
  std::vector<Token> tokens_;
  std::map<std::string, NodeId, std::less<>> roots_;
  std::unordered_map<NodeId, std::string> root_names_;
  std::map<std::string, LabelId, std::less<>> labels_;
  std::unordered_map<LabelId, Label> label_texts_;
  LabelId next_label_ = kNoLabel + 1;
};

template <typename Usable>
TokenTree::Closest TokenTree::find_closest(NodeId parent, TokenSpan asked, Usable usable) const {
  // The longest common prefixes are those of the neighbours of the asked tokens in order, and they
  // only get shorter further out; unusable nodes are stepped over.
  NodeId below = kNone, above = kNone;
  for (NodeId id = nodes_[parent].children; id != kNone;) {
    if (compare_key(id, kNoLabel, asked) < 0) {
      below = id;
      id = nodes_[id].right;
    } else {
      above = id;
      id = nodes_[id].left;
    }
  }
  Closest best;
  const auto walk = [&](NodeId id, auto advance) {
    for (; id != kNone && nodes_[id].label == kNoLabel; id = advance(id)) {
      const std::int32_t common = common_prefix(tokens(id), asked);
      if (common <= best.common) return;
      if (usable(id)) {
        best = {id, common};
        return;
      }
    }
  };
  walk(above, [this](NodeId id) { return next(id); });
  walk(below, [this](NodeId id) { return previous(id); });
  return best;
}

}  // namespace helium
