// Slots of host memory: which node's copy each one holds, and which to give up next.
//
// Same places and order as for blocks: a slot whose node has a block as well is a duplicate, one
// that others hang below is interior. A locked slot is out of the order until the step is over.
#pragma once

#include <utility>
#include <vector>

#include "helium/eviction_queue.h"

namespace helium {

class HostSlots {
 public:
  explicit HostSlots(std::int32_t num_slots) : queue_(num_slots), nodes_(num_slots, kNone) {}

  std::int32_t size() const { return std::int32_t(nodes_.size()); }
  std::int32_t count(Place place) const { return queue_.count(place); }
  NodeId node(SlotId slot) const { return nodes_[slot]; }
  bool is_locked(SlotId slot) const { return queue_.is_held(slot); }

  EvictionQueue& queue() { return queue_; }
  const EvictionQueue& queue() const { return queue_; }

  void set_node(SlotId slot, NodeId node) { nodes_[slot] = node; }
  // Takes a slot out of the order until `unlock_all`, and marks its use.
  void lock(SlotId slot) {
    if (is_locked(slot)) return;
    queue_.take(slot);
    queue_.stamp(slot);
    locked_.push_back(slot);
  }
  // Slots to be put back; the caller puts each where it belongs.
  std::vector<SlotId> unlock_all() { return std::exchange(locked_, {}); }
  const std::vector<SlotId>& locked() const { return locked_; }
  // Forgets what all slots hold; locked ones stay locked.
  void clear() {
    std::vector<SlotId> free = queue_.free_blocks();
    for (const SlotId slot : free) queue_.take(slot);
    nodes_.assign(nodes_.size(), kNone);
    for (const SlotId slot : free) queue_.put_unindexed_last(slot);
  }
  std::size_t num_bytes() const {
    return size() == 0 ? 0 : queue_.num_bytes() + nodes_.capacity() * sizeof(NodeId);
  }

 private:
  EvictionQueue queue_;
  std::vector<NodeId> nodes_;
  std::vector<SlotId> locked_;
};

}  // namespace helium
