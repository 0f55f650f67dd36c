// The prefix cache's index: which blocks hold the KV of which token prefix, and which free block
// to give up next. Holds no KV and knows no device.
//
// A node may have blocks on the device, a slot in host memory, or both. With host memory, eviction
// demotes: the index gives the node a slot and asks for a store; a lookup goes on into what only the
// host holds, and the caller asks for loads. Wherever a node has a block, its parent has one, so the
// host only ever extends what the device holds.
//
// Blocks are held or free (see Place). A held block is given back with `release`, taken again with
// `acquire`; `evict` turns free blocks into held, unindexed ones. Blocks enter the index when their
// slots are allocated, before the forward pass that writes them; `advance` starts a step.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "helium/eviction_queue.h"
#include "helium/host_slots.h"
#include "helium/miss_history.h"
#include "helium/template_tags.h"
#include "helium/token_tree.h"

namespace helium {

struct Options {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  std::int32_t min_partial_tokens = 8;    // shortest run inside a block worth a copy
  std::int32_t max_leased_blocks = 0;     // leases beyond it are dropped, earliest expiry first
  std::int32_t max_protected_blocks = 0;  // leased and next-use blocks beyond it go before ordinary
  std::int32_t num_slots = 0;             // blocks that host memory holds
};

// Extra key of one block of a prompt (multimodal content); such blocks match only as a whole.
using BlockLabel = std::pair<std::int32_t, std::string_view>;  // block index in the prompt, key

// Tokens up to `end` (exclusive, in the prompt) belong to `tag`.
struct TagSegment {
  std::int32_t end = 0;
  TagId tag = kNone;
};

struct Match {
  std::vector<BlockId> blocks;   // in order; the last one is partial when num_tokens ends inside it
  std::int32_t num_tokens = 0;
  // What the host holds beyond the full blocks, in order; the last slot is partial when the tokens
  // end inside it. Where there are any, `blocks` has no partial one.
  std::vector<SlotId> slots;
  std::int32_t num_host_tokens = 0;
  // Tokens beyond all of these that this step computes: a lookup in the next step may find them.
  std::int32_t num_pending_tokens = 0;
  MissReason reason = MissReason::kNone;
  std::int32_t miss_token = 0;   // where the prompt leaves the cached path
  Place evicted_as = Place::kHeld;
  double evicted_ago_s = 0;
};

struct Stats {
  std::int64_t num_evicted[kNumPlaces] = {};  // indexed blocks given up, by place
  std::int64_t num_leases_dropped = 0;
  std::int64_t num_demoted[kNumPlaces] = {};        // of those evicted, kept on the host, by place
  std::int64_t num_slots_evicted[kNumPlaces] = {};  // host copies given up, by place
  std::int64_t num_stored = 0;                      // blocks copied to the host
  std::int64_t num_loaded = 0;                      // slots copied back for a request
  std::int64_t num_prefetched = 0;                  // slots copied back ahead of any request
  std::int64_t num_prefetches_used = 0;
  std::int64_t num_prefetches_wasted = 0;           // given up before anything used them
};

// One copy between a block and a slot.
struct Move {
  BlockId block = kNone;
  SlotId slot = kNone;
};

// What to copy in the current step: `stores` before anything writes a block, then `loads` before
// the forward pass, then `prefetches` before the next step.
struct Moves {
  std::vector<Move> stores, loads, prefetches;
};

class PrefixIndex {
 public:
  explicit PrefixIndex(const Options& options);

  // --- lookup -----------------------------------------------------------------------------------
  // Longest cached prefix of at most `max_tokens` tokens. A match that ends inside a block names a
  // block whose leading tokens are right and were written in an earlier step: copy it before use.
  // `plan` and `num_static_tokens` (leading tokens the plan says are static) serve the diagnosis.
  // The blocks stay valid until the next evict, forget or reset. O(tokens + blocks·log siblings).
  Match match(std::string_view name, TokenSpan tokens, std::int32_t max_tokens,
              const std::vector<BlockLabel>& labels, std::int32_t plan = kNone,
              std::int32_t num_static_tokens = 0) const;

  // --- index ------------------------------------------------------------------------------------
  // Indexes held blocks as the blocks from `first_block` on of the prompt `tokens`, whose block
  // before is `parent` (kNone: none). Returns how many were indexed: none where the parent is not
  // indexed (any more). The last block may be partial.
  std::int32_t insert(BlockId parent, std::string_view name, TokenSpan tokens,
                      std::int32_t first_block, const std::vector<BlockId>& blocks,
                      const std::vector<BlockLabel>& labels, const std::vector<TagSegment>& tags);
  // Whether a cached sibling below `parent` already covers all of `tail`.
  bool covers(BlockId parent, std::string_view name, TokenSpan tail) const;
  // Tells the index that a request reuses `blocks`, the prompt's blocks from 0 on.
  void claim(const std::vector<BlockId>& blocks, const std::vector<TagSegment>& tags);
  // Removes a block, and what only it led to, from the index; held or free as before.
  bool forget(BlockId block);
  // The same for a block that is indexed as a partial one; returns whether it was.
  bool forget_partial(BlockId block);
  bool is_indexed(BlockId block) const { return blocks_[block].node != kNone; }

  // --- blocks -----------------------------------------------------------------------------------
  // Held blocks become free; the first given is the first to be given up among equals.
  void release(const std::vector<BlockId>& blocks);
  // Free blocks become held, without losing what they cache.
  void acquire(const std::vector<BlockId>& blocks);
  // Takes `count` free blocks, drops what they cache, and hands them out held. O(count·log n).
  std::vector<BlockId> evict(std::int32_t count);
  std::int32_t num_free() const { return queue_.num_free(); }

  // --- host memory ------------------------------------------------------------------------------
  // Keeps slots of a match from being given up for the rest of the step.
  void lock_slots(const std::vector<SlotId>& slots);
  // Asks for slots to be copied to held blocks, one to one, before the step's forward pass.
  void load(const std::vector<BlockId>& blocks, const std::vector<SlotId>& slots);
  // Brings what only the host holds of a path back into free blocks that are worth less to the
  // plan, at most `max_blocks` of them; returns how many. Call it after the step's last lookup.
  std::int32_t prefetch(std::string_view name, TokenSpan tokens, std::int32_t max_blocks,
                        const std::vector<BlockLabel>& labels);
  // Hands over what is to be copied in this step.
  Moves take_moves();
  std::vector<BlockId> free_blocks() const { return queue_.free_blocks(); }
  Place place(BlockId block) const { return queue_.place(block); }

  // --- plans and leases -------------------------------------------------------------------------
  TagId tag(std::int32_t plan, std::int32_t template_node, std::int32_t row);
  // Pending calls that will read the tag's blocks and the position of the nearest in the schedule.
  void set_uses(TagId tag, std::int32_t num_uses, std::uint32_t next_use);
  void close_plan(std::int32_t plan);
  // Leases a tag's blocks, now and as they come, until a use-renewed expiry. Returns whether the
  // lease stands: one that does not fit the budget is dropped, or drops one that expires earlier.
  bool lease(TagId tag, double lease_s);
  // Leases a path of indexed blocks; those a plan or a lease protects already are left alone.
  TagId lease_blocks(const std::vector<BlockId>& blocks, double lease_s);
  void end_lease(TagId tag);

  // --- time -------------------------------------------------------------------------------------
  // A step starts: KV of blocks indexed before may be copied. Ends leases that expired by `now_s`.
  void advance(double now_s);
  // The same without a step: for leases made between steps, when the last one may be long ago.
  void tell_time(double now_s);

  // Forgets everything cached; held blocks stay held.
  void reset();

  const Options& options() const { return options_; }
  const Stats& stats() const { return stats_; }
  std::int32_t num_nodes() const { return tree_.num_nodes(); }
  std::int32_t num_indexed() const { return num_indexed_; }
  std::int32_t num_leased_nodes() const { return num_leased_; }
  std::int32_t num_protected_nodes() const { return num_protected_; }
  std::int32_t num_tags() const { return tags_.size(); }
  std::int32_t count(Place place) const { return queue_.count(place); }
  std::int32_t count_slots(Place place) const { return host_.count(place); }
  const Tag& tag_at(TagId tag) const;
  TagId tag_of(BlockId block) const;
  std::size_t num_bytes() const;  // without the tokens
  // Proves: free + held = total, tree = block map, every free block where it belongs, all counts.
  void check_integrity() const;

 private:
  struct Block {
    NodeId node = kNone;
    BlockId next = kNone;  // ring of the node's blocks: held ones first
    BlockId previous = kNone;
    std::uint32_t written = 0;  // step that writes its KV
  };

  // Calls `visit` with the node of every full block of a path, as long as it returns true; returns
  // how many it accepted, the last of them, and the label of the block after it (kNone: unknown).
  struct Walk {
    std::int32_t num_blocks = 0;
    NodeId node = kNone;
    LabelId label = kNoLabel;
  };
  template <typename Visit>
  Walk walk(std::string_view name, TokenSpan tokens, std::int32_t num_blocks,
            const std::vector<BlockLabel>& labels, Visit visit) const;
  BlockId written_block(NodeId node) const;
  void explain(Match& match, std::uint32_t path, std::int32_t num_full, TokenSpan rest,
               TokenTree::Closest closest, LabelId label, std::int32_t plan,
               std::int32_t num_static_tokens) const;
  void attach(BlockId block, NodeId node);
  void detach(BlockId block);
  void leave_tree(NodeId node);
  void forget_below(NodeId node);
  void forget_slots_below(NodeId node);
  void forget_prefix_of(NodeId node);
  void ring_insert(BlockId block, NodeId node, bool at_front);
  void ring_remove(BlockId block);

  // Where a free block belongs; drops tags that no longer mean anything on the way.
  Place settle(BlockId block);
  Place where(BlockId block) const;
  void refresh(BlockId block);
  void refresh_keeper(NodeId node);
  void retag(NodeId node, TagId tag);
  void claim_node(NodeId node, TagId wanted);
  bool is_void(const Node& node) const;
  void count_tag(TagId tag, std::int32_t sign);
  void count_device(NodeId node, std::int32_t sign);
  // Applies a change to a tag and moves its counts and blocks along.
  void change_tag(TagId tag, const std::function<void(Tag&)>& change);
  void enforce_lease_budget();
  void check_tags(const std::vector<TagSegment>& tags) const;
  // Host memory, see prefix_index_host.cpp.
  bool demote(BlockId block, Place place);
  SlotId free_slot_for(NodeId node, Place place);
  void drop_slot(SlotId slot);
  Place slot_place(SlotId slot) const;
  void refresh_slot(NodeId node);
  bool is_device_leaf(NodeId node) const {
    return host_.size() == 0 ? tree_.is_leaf(node) : num_device_children_[node] == 0;
  }
  void count_device_child(NodeId parent, std::int32_t sign);
  void order_tag(TagId tag);
  void cancel_moves_to(BlockId block);
  void settle_prefetch(BlockId block, bool is_used);
  bool prefetch_node(NodeId node);
  void check_host() const;

  static TagId tag_for(const std::vector<TagSegment>& tags, std::int32_t end, std::size_t& cursor);

  Options options_;
  TokenTree tree_;
  EvictionQueue queue_;
  HostSlots host_;
  TemplateTags tags_;
  MissHistory history_;
  std::vector<Block> blocks_;
  // Kept only with host memory; without it, every node has a block.
  std::vector<std::uint32_t> released_;  // step in which the block was last given back
  std::vector<bool> is_target_;      // block is to be copied from the host in this step
  std::vector<bool> is_prefetched_;  // block was brought back and not used yet
  std::vector<std::int32_t> num_device_children_;  // by node
  std::set<std::pair<double, TagId>> leases_;
  Moves moves_;
  std::uint32_t step_ = 1;
  double now_s_ = 0;
  std::int32_t num_indexed_ = 0;
  std::int32_t num_leased_ = 0;     // nodes of leased tags
  std::int32_t num_protected_ = 0;  // nodes of leased and next-use tags
  Stats stats_;
};

template <typename Visit>
PrefixIndex::Walk PrefixIndex::walk(std::string_view name, TokenSpan tokens,
                                    std::int32_t num_blocks, const std::vector<BlockLabel>& labels,
                                    Visit visit) const {
  const std::int32_t size = options_.block_size;
  std::size_t cursor = 0;
  const auto label_of = [&](std::int32_t index) {
    while (cursor < labels.size() && labels[cursor].first < index) ++cursor;
    const bool has_label = cursor < labels.size() && labels[cursor].first == index;
    return has_label ? tree_.find_label(labels[cursor].second) : kNoLabel;
  };
  Walk at{0, tree_.find_root(name), label_of(0)};
  while (at.node != kNone && at.num_blocks < num_blocks && at.label != kNone) {
    const NodeId child = tree_.find_child(at.node, at.label, tokens.sub(at.num_blocks * size, size));
    if (child == kNone || !visit(child)) break;
    at.node = child;
    at.label = label_of(++at.num_blocks);
  }
  return at;
}

}  // namespace helium
