#include "helium/token_tree.h"

#include "helium/check.h"

namespace helium {

TokenTree::TokenTree(std::int32_t num_blocks, std::int32_t block_size) : block_size_(block_size) {
  HELIUM_CHECK(block_size > 0 && block_size <= UINT16_MAX,
               "block_size must be in [1, 65535], got ", block_size);
  HELIUM_CHECK(num_blocks > 0, "num_blocks must be positive, got ", num_blocks);
  nodes_.reserve(num_blocks + 64);
  tokens_.reserve((std::size_t(num_blocks) + 64) * block_size);
}

std::uint32_t TokenTree::priority(NodeId id) {
  std::uint64_t x = (std::uint64_t(id) + 1) * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  return std::uint32_t(x >> 32);
}

NodeId TokenTree::find_root(std::string_view name) const {
  const auto found = roots_.find(name);
  return found == roots_.end() ? kNone : found->second;
}

NodeId TokenTree::ensure_root(std::string_view name) {
  if (const NodeId known = find_root(name); known != kNone) return known;
  const NodeId id = allocate();
  nodes_[id].is_root = true;
  nodes_[id].hash = root_hash(name);
  roots_.emplace(name, id);
  root_names_.emplace(id, name);
  return id;
}

LabelId TokenTree::find_label(std::string_view text) const {
  const auto found = labels_.find(text);
  return found == labels_.end() ? kNone : found->second;
}

LabelId TokenTree::ensure_label(std::string_view text) {
  if (const LabelId known = find_label(text); known != kNone) return known;
  const LabelId id = next_label_++;
  labels_.emplace(text, id);
  label_texts_.emplace(id, Label{std::string(text), 0});
  return id;
}

int TokenTree::compare_key(NodeId id, LabelId label, TokenSpan asked) const {
  if (nodes_[id].label != label) return nodes_[id].label < label ? -1 : 1;
  return compare(tokens(id), asked);
}

NodeId TokenTree::find_child(NodeId parent, LabelId label, TokenSpan asked) const {
  NodeId id = nodes_[parent].children;
  while (id != kNone) {
    const int order = compare_key(id, label, asked);
    if (order == 0) return id;
    id = order < 0 ? nodes_[id].right : nodes_[id].left;
  }
  return kNone;
}

NodeId TokenTree::first_child(NodeId parent) const {
  NodeId id = nodes_[parent].children;
  while (id != kNone && nodes_[id].left != kNone) id = nodes_[id].left;
  return id;
}

NodeId TokenTree::step(NodeId id, NodeId Node::*toward, NodeId Node::*away) const {
  if (NodeId other = nodes_[id].*toward; other != kNone) {
    while (nodes_[other].*away != kNone) other = nodes_[other].*away;
    return other;
  }
  NodeId above = nodes_[id].up;
  while (above != kNone && nodes_[above].*toward == id) {
    id = above;
    above = nodes_[id].up;
  }
  return above;
}

NodeId TokenTree::allocate() {
  if (free_ != kNone) {
    const NodeId id = free_;
    free_ = nodes_[id].children;
    nodes_[id] = Node{};
    return id;
  }
  nodes_.emplace_back();
  tokens_.resize(tokens_.size() + block_size_);
  return NodeId(nodes_.size()) - 1;
}

void TokenTree::replace_in_parent(NodeId old_node, NodeId new_node) {
  const Node& node = nodes_[old_node];
  if (node.up == kNone) {
    nodes_[node.parent].children = new_node;
  } else if (nodes_[node.up].left == old_node) {
    nodes_[node.up].left = new_node;
  } else {
    nodes_[node.up].right = new_node;
  }
  if (new_node != kNone) nodes_[new_node].up = node.up;
}

void TokenTree::rotate_up(NodeId id) {
  const NodeId above = nodes_[id].up;
  replace_in_parent(above, id);
  Node& node = nodes_[id];
  const bool from_left = nodes_[above].left == id;
  NodeId& inner = from_left ? node.right : node.left;
  (from_left ? nodes_[above].left : nodes_[above].right) = inner;
  if (inner != kNone) nodes_[inner].up = above;
  inner = above;
  nodes_[above].up = id;
}

NodeId TokenTree::add_child(NodeId parent, LabelId label, TokenSpan span) {
  HELIUM_CHECK(span.size > 0 && span.size <= block_size_, "a node takes 1 to ", block_size_,
               " tokens, got ", span.size);
  HELIUM_CHECK(nodes_[parent].is_root || nodes_[parent].num_tokens == block_size_,
               "only a full block has children");
  const NodeId id = allocate();
  Node& node = nodes_[id];
  node.parent = parent;
  node.label = label;
  node.num_tokens = std::uint16_t(span.size);
  node.hash = path_hash(nodes_[parent].hash, span, label);
  std::copy_n(span.data, span.size, tokens_.begin() + std::size_t(id) * block_size_);
  ++num_nodes_;
  if (label != kNoLabel) ++label_texts_.at(label).num_edges;

  NodeId above = kNone;
  NodeId* link = &nodes_[parent].children;
  while (*link != kNone) {
    above = *link;
    link = compare_key(above, label, span) < 0 ? &nodes_[above].right : &nodes_[above].left;
  }
  *link = id;
  node.up = above;
  while (node.up != kNone && priority(node.up) < priority(id)) rotate_up(id);
  return id;
}

void TokenTree::remove_leaf(NodeId id) {
  HELIUM_CHECK(!nodes_[id].is_root && is_leaf(id), "only a childless node can be removed");
  while (nodes_[id].left != kNone && nodes_[id].right != kNone) {
    const NodeId left = nodes_[id].left, right = nodes_[id].right;
    rotate_up(priority(left) > priority(right) ? left : right);
  }
  replace_in_parent(id, nodes_[id].left != kNone ? nodes_[id].left : nodes_[id].right);

  if (const LabelId label = nodes_[id].label; label != kNoLabel) {
    const auto found = label_texts_.find(label);
    if (--found->second.num_edges == 0) {
      labels_.erase(found->second.text);
      label_texts_.erase(found);
    }
  }
  const NodeId parent = nodes_[id].parent;
  const auto release = [this](NodeId unused) {
    nodes_[unused] = Node{};
    nodes_[unused].children = free_;
    free_ = unused;
  };
  release(id);
  --num_nodes_;
  if (nodes_[parent].is_root && is_leaf(parent)) {
    const auto name = root_names_.find(parent);
    roots_.erase(name->second);
    root_names_.erase(name);
    release(parent);
  }
}

std::size_t TokenTree::num_bytes() const { return nodes_.capacity() * sizeof(Node); }

void TokenTree::clear() {
  nodes_.clear();
  tokens_.clear();
  roots_.clear();
  root_names_.clear();
  labels_.clear();
  label_texts_.clear();
  free_ = kNone;
  num_nodes_ = 0;
}

std::vector<NodeId> TokenTree::check() const {
  std::vector<NodeId> live, pending;
  for (const auto& [name, root] : roots_) {
    HELIUM_CHECK(nodes_[root].is_root && root_names_.at(root) == name, "root ", root,
                 " is not the root of its name");
    HELIUM_CHECK(!is_leaf(root), "root ", root, " has no children and should be gone");
    pending.push_back(root);
  }
  std::unordered_map<LabelId, std::int32_t> num_edges;
  while (!pending.empty()) {
    const NodeId parent = pending.back();
    pending.pop_back();
    if (const NodeId top = nodes_[parent].children; top != kNone) {
      HELIUM_CHECK(nodes_[top].up == kNone, "treap root ", top, " has something above it");
    }
    NodeId before = kNone;
    for (NodeId id = first_child(parent); id != kNone; id = next(id)) {
      const Node& node = nodes_[id];
      HELIUM_CHECK(node.parent == parent && !node.is_root, "node ", id, " is not a child of ",
                   parent);
      HELIUM_CHECK(node.num_tokens > 0 && node.num_tokens <= block_size_, "node ", id, " has ",
                   node.num_tokens, " tokens");
      HELIUM_CHECK(node.num_tokens == block_size_ || is_leaf(id), "partial node ", id,
                   " has children");
      HELIUM_CHECK(node.hash == path_hash(nodes_[parent].hash, tokens(id), node.label), "node ", id,
                   " has a stale path hash");
      HELIUM_CHECK(before == kNone || compare_key(before, node.label, tokens(id)) < 0, "siblings ",
                   before, " and ", id, " are out of order");
      for (const NodeId below : {node.left, node.right}) {
        HELIUM_CHECK(below == kNone || (nodes_[below].up == id && priority(below) <= priority(id)),
                     "node ", below, " does not hang below ", id);
      }
      if (node.label != kNoLabel) ++num_edges[node.label];
      live.push_back(id);
      pending.push_back(id);
      before = id;
    }
  }
  HELIUM_CHECK(std::int32_t(live.size()) == num_nodes_, "counted ", live.size(), " nodes, expected ",
               num_nodes_);
  std::size_t num_unused = 0;
  for (NodeId id = free_; id != kNone; id = nodes_[id].children) ++num_unused;
  HELIUM_CHECK(live.size() + roots_.size() + num_unused == nodes_.size(),
               "live, root and unused nodes do not add up to ", nodes_.size());
  HELIUM_CHECK(num_edges.size() == label_texts_.size() && labels_.size() == label_texts_.size(),
               "label table does not match the edges");
  for (const auto& [label, count] : num_edges) {
    HELIUM_CHECK(label_texts_.at(label).num_edges == count, "label ", label, " counts wrong");
  }
  return live;
}

}  // namespace helium
