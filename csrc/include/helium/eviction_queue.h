// The free blocks, in the order in which they are given up.
//
// Every free block is in exactly one container: a list for unindexed, duplicate, tail and interior
// blocks, one list per template tag, and a heap by last use for ordinary cached blocks. Tags with
// candidates are ordered among themselves, so a change of a tag's next use moves one entry however
// many blocks it has. All operations are O(1) but for the heap and the tag order, O(log n).
#pragma once

#include <set>
#include <tuple>
#include <vector>

#include "helium/types.h"

namespace helium {

class EvictionQueue {
 public:
  explicit EvictionQueue(std::int32_t num_blocks);

  Place place(BlockId block) const { return place_[block]; }
  bool is_held(BlockId block) const { return place_[block] == Place::kHeld; }
  std::int32_t num_free() const { return num_free_; }
  std::int32_t count(Place place) const { return counts_[int(place)]; }

  // Marks the moment of a block's last use.
  void stamp(BlockId block) { used_[block] = ++clock_; }
  // Puts a block that is in no container into one; `tag` matters for kDead, kNextUse, kLeased.
  void put(BlockId block, Place place, TagId tag);
  // Puts an unindexed block last instead of first among its kind.
  void put_unindexed_last(BlockId block);
  // Takes a block out of its container; it is held then.
  void take(BlockId block);
  // Whether the block already is where `put` would bring it.
  bool is_at(BlockId block, Place place, TagId tag) const {
    return place_[block] == place && (!has_tag(place) || tag_of_[block] == tag);
  }

  // Next block to give up, or kNone. Blocks a plan still wants go before ordinary ones where
  // `protected_first`.
  BlockId victim(bool protected_first) const;

  // Where a tag stands: kDead, kNextUse or kLeased, smaller `order` first. Moves all its blocks.
  void set_tag_order(TagId tag, Place place, std::uint64_t order);
  // Blocks queued under a tag, oldest first.
  std::vector<BlockId> tagged(TagId tag) const;

  // All free blocks, in order of eviction as far as it is fixed now.
  std::vector<BlockId> free_blocks() const;
  std::size_t num_bytes() const;
  // Proves that containers, positions and counts agree; raises CheckError.
  void check() const;

 private:
  static constexpr std::int32_t kNumLists = 4;
  static bool has_tag(Place place) {
    return place == Place::kDead || place == Place::kNextUse || place == Place::kLeased;
  }
  static std::int32_t list_index(Place place);
  std::int32_t sentinel(Place place, TagId tag) const {
    return num_blocks_ + (has_tag(place) ? kNumLists + tag : list_index(place));
  }
  bool is_empty(std::int32_t head) const { return next_[head] == head; }
  void link_before(std::int32_t entry, std::int32_t where);
  std::vector<BlockId> list(std::int32_t head) const;
  void heap_place(std::int32_t position, BlockId block);
  void heap_up(std::int32_t position);
  void heap_down(std::int32_t position);
  bool earlier(BlockId a, BlockId b) const { return used_[a] < used_[b]; }

  struct TagOrder {
    Place place = Place::kDead;
    std::uint64_t order = 0;
    TagId tag = kNone;
    auto key() const { return std::tie(place, order, tag); }
    bool operator<(const TagOrder& other) const { return key() < other.key(); }
    bool operator==(const TagOrder& other) const { return key() == other.key(); }
  };

  std::int32_t num_blocks_;
  std::int32_t num_free_;
  std::int32_t counts_[kNumPlaces] = {};
  std::uint64_t clock_ = 0;
  std::vector<Place> place_;
  std::vector<TagId> tag_of_;          // tag a block is queued under
  std::vector<std::uint64_t> used_;    // clock at last use
  std::vector<std::int32_t> next_;     // blocks, then the heads of lists, then of tags
  std::vector<std::int32_t> previous_; // or the position in the heap
  std::vector<BlockId> heap_;          // kRecent, least recently used first
  std::vector<TagOrder> tag_orders_;
  std::set<TagOrder> tags_;            // those with blocks
};

}  // namespace helium
