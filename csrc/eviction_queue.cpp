#include "helium/eviction_queue.h"

#include <algorithm>
#include <numeric>

#include "helium/check.h"

namespace helium {

EvictionQueue::EvictionQueue(std::int32_t num_blocks)
    : num_blocks_(num_blocks),
      num_free_(0),
      place_(num_blocks, Place::kHeld),
      tag_of_(num_blocks, kNone),
      used_(num_blocks, 0),
      next_(num_blocks + kNumLists),
      previous_(num_blocks + kNumLists) {
  std::iota(next_.begin(), next_.end(), 0);
  previous_ = next_;
  heap_.reserve(num_blocks);
  counts_[int(Place::kHeld)] = num_blocks;
  for (BlockId block = 0; block < num_blocks; ++block) put_unindexed_last(block);
}

std::int32_t EvictionQueue::list_index(Place place) {
  switch (place) {
    case Place::kUnindexed: return 0;
    case Place::kDuplicate: return 1;
    case Place::kTail: return 2;
    case Place::kInterior: return 3;
    default: raise_check_error("place ", int(place), " has no list");
  }
}

void EvictionQueue::link_before(std::int32_t entry, std::int32_t where) {
  const std::int32_t before = previous_[where];
  previous_[entry] = before;
  next_[entry] = where;
  next_[before] = entry;
  previous_[where] = entry;
}

void EvictionQueue::put(BlockId block, Place place, TagId tag) {
  HELIUM_CHECK(is_held(block), "block ", block, " is free already");
  HELIUM_CHECK(place != Place::kHeld, "a free block cannot be put among the held ones");
  place_[block] = place;
  --counts_[int(Place::kHeld)];
  ++counts_[int(place)];
  ++num_free_;
  if (place == Place::kRecent) {
    heap_.push_back(block);
    heap_up(std::int32_t(heap_.size()) - 1);
    return;
  }
  const std::int32_t head = sentinel(place, tag);
  if (has_tag(place)) {
    HELIUM_CHECK(tag >= 0 && head < std::int32_t(next_.size()), "tag ", tag, " has no order");
    tag_of_[block] = tag;
    if (is_empty(head)) tags_.insert(tag_orders_[tag]);
  }
  // Unindexed blocks are reused last in, first out; all others in order of arrival.
  link_before(block, place == Place::kUnindexed ? next_[head] : head);
}

void EvictionQueue::put_unindexed_last(BlockId block) {
  HELIUM_CHECK(is_held(block), "block ", block, " is free already");
  place_[block] = Place::kUnindexed;
  --counts_[int(Place::kHeld)];
  ++counts_[int(Place::kUnindexed)];
  ++num_free_;
  link_before(block, sentinel(Place::kUnindexed, kNone));
}

void EvictionQueue::take(BlockId block) {
  const Place place = place_[block];
  HELIUM_CHECK(place != Place::kHeld, "block ", block, " is not free");
  if (place == Place::kRecent) {
    const std::int32_t position = previous_[block];
    const BlockId last = heap_.back();
    heap_.pop_back();
    if (last != block) {
      heap_place(position, last);
      heap_up(position);
      heap_down(previous_[last]);
    }
  } else {
    next_[previous_[block]] = next_[block];
    previous_[next_[block]] = previous_[block];
    if (has_tag(place)) {
      const TagId tag = tag_of_[block];
      if (is_empty(sentinel(place, tag))) tags_.erase(tag_orders_[tag]);
      tag_of_[block] = kNone;
    }
  }
  place_[block] = Place::kHeld;
  --counts_[int(place)];
  ++counts_[int(Place::kHeld)];
  --num_free_;
}

BlockId EvictionQueue::victim(bool protected_first) const {
  for (const Place place : {Place::kUnindexed, Place::kDuplicate, Place::kTail}) {
    if (const std::int32_t head = sentinel(place, kNone); !is_empty(head)) return next_[head];
  }
  const auto first_tagged = [this] { return next_[sentinel(Place::kDead, tags_.begin()->tag)]; };
  if (!tags_.empty() && (protected_first || tags_.begin()->place == Place::kDead)) {
    return first_tagged();
  }
  if (!heap_.empty()) return heap_.front();
  if (!tags_.empty()) return first_tagged();
  const std::int32_t head = sentinel(Place::kInterior, kNone);
  return is_empty(head) ? kNone : next_[head];
}

void EvictionQueue::set_tag_order(TagId tag, Place place, std::uint64_t order) {
  HELIUM_CHECK(has_tag(place), "a tag is dead, has a next use or is leased; got place ", int(place));
  while (std::int32_t(tag_orders_.size()) <= tag) {
    tag_orders_.push_back({Place::kDead, 0, TagId(tag_orders_.size())});
    next_.push_back(std::int32_t(next_.size()));
    previous_.push_back(std::int32_t(previous_.size()));
  }
  const TagOrder now{place, order, tag};
  if (tag_orders_[tag] == now) return;
  const std::int32_t head = sentinel(place, tag);
  if (!is_empty(head)) {
    tags_.erase(tag_orders_[tag]);
    tags_.insert(now);
    if (const Place before = tag_orders_[tag].place; before != place) {
      for (BlockId block = next_[head]; block != head; block = next_[block]) {
        place_[block] = place;
        --counts_[int(before)];
        ++counts_[int(place)];
      }
    }
  }
  tag_orders_[tag] = now;
}

std::vector<BlockId> EvictionQueue::list(std::int32_t head) const {
  std::vector<BlockId> blocks;
  for (std::int32_t block = next_[head]; block != head; block = next_[block]) {
    blocks.push_back(block);
  }
  return blocks;
}

std::vector<BlockId> EvictionQueue::tagged(TagId tag) const {
  return list(sentinel(Place::kDead, tag));
}

std::vector<BlockId> EvictionQueue::free_blocks() const {
  std::vector<BlockId> all;
  const auto add = [&all](const std::vector<BlockId>& some) {
    all.insert(all.end(), some.begin(), some.end());
  };
  for (const Place place : {Place::kUnindexed, Place::kDuplicate, Place::kTail}) {
    add(list(sentinel(place, kNone)));
  }
  auto tag = tags_.begin();
  for (; tag != tags_.end() && tag->place == Place::kDead; ++tag) add(tagged(tag->tag));
  std::vector<BlockId> recent = heap_;
  std::sort(recent.begin(), recent.end(), [this](BlockId a, BlockId b) { return earlier(a, b); });
  add(recent);
  for (; tag != tags_.end(); ++tag) add(tagged(tag->tag));
  add(list(sentinel(Place::kInterior, kNone)));
  return all;
}

void EvictionQueue::heap_place(std::int32_t position, BlockId block) {
  heap_[position] = block;
  previous_[block] = position;
}

void EvictionQueue::heap_up(std::int32_t position) {
  const BlockId block = heap_[position];
  while (position > 0) {
    const std::int32_t above = (position - 1) / 2;
    if (!earlier(block, heap_[above])) break;
    heap_place(position, heap_[above]);
    position = above;
  }
  heap_place(position, block);
}

void EvictionQueue::heap_down(std::int32_t position) {
  const BlockId block = heap_[position];
  const auto size = std::int32_t(heap_.size());
  while (2 * position + 1 < size) {
    std::int32_t below = 2 * position + 1;
    if (below + 1 < size && earlier(heap_[below + 1], heap_[below])) ++below;
    if (!earlier(heap_[below], block)) break;
    heap_place(position, heap_[below]);
    position = below;
  }
  heap_place(position, block);
}

std::size_t EvictionQueue::num_bytes() const {
  return place_.capacity() * sizeof(Place) + tag_of_.capacity() * sizeof(TagId) +
         used_.capacity() * sizeof(std::uint64_t) +
         (next_.capacity() + previous_.capacity() + heap_.capacity()) * sizeof(std::int32_t) +
         tag_orders_.capacity() * sizeof(TagOrder);
}

void EvictionQueue::check() const {
  std::vector<int> seen(num_blocks_, 0);
  std::int32_t counts[kNumPlaces] = {};
  const auto visit = [&](std::int32_t head, Place place, TagId tag) {
    for (std::int32_t block = next_[head], before = head;; before = block, block = next_[block]) {
      HELIUM_CHECK(previous_[block] == before, "links around block ", block, " disagree");
      if (block == head) break;
      HELIUM_CHECK(block < num_blocks_ && place_[block] == place && tag_of_[block] == tag, "block ",
                   block, " is in a list that is not its own");
      ++seen[block];
      ++counts[int(place)];
    }
  };
  for (const Place place :
       {Place::kUnindexed, Place::kDuplicate, Place::kTail, Place::kInterior}) {
    visit(sentinel(place, kNone), place, kNone);
  }
  std::size_t num_tags = 0;
  for (const TagOrder& order : tag_orders_) {
    const std::int32_t head = sentinel(Place::kDead, order.tag);
    visit(head, order.place, order.tag);
    HELIUM_CHECK(is_empty(head) != (tags_.count(order) > 0), "tag ", order.tag,
                 " is ordered without blocks or has blocks without order");
    num_tags += !is_empty(head);
  }
  HELIUM_CHECK(num_tags == tags_.size(), "tag order holds ", tags_.size(), " tags, counted ",
               num_tags);
  for (std::size_t position = 0; position < heap_.size(); ++position) {
    const BlockId block = heap_[position];
    HELIUM_CHECK(place_[block] == Place::kRecent && previous_[block] == std::int32_t(position),
                 "block ", block, " does not know its position in the heap");
    HELIUM_CHECK(position == 0 || !earlier(block, heap_[(position - 1) / 2]),
                 "heap order is broken at block ", block);
    ++seen[block];
    ++counts[int(Place::kRecent)];
  }
  std::int32_t num_free = 0;
  for (BlockId block = 0; block < num_blocks_; ++block) {
    HELIUM_CHECK(seen[block] == !is_held(block), "block ", block, " is in ", seen[block],
                 " containers, place ", int(place_[block]));
    num_free += seen[block];
  }
  counts[int(Place::kHeld)] = num_blocks_ - num_free;
  HELIUM_CHECK(num_free == num_free_, "counted ", num_free, " free blocks, expected ", num_free_);
  for (int place = 0; place < kNumPlaces; ++place) {
    HELIUM_CHECK(counts[place] == counts_[place], "counted ", counts[place], " blocks at place ",
                 place, ", expected ", counts_[place]);
  }
}

}  // namespace helium
