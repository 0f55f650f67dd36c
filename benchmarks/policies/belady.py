"""How many block hits any eviction policy could have had: Belady's MIN on a recorded trace.

The bound holds for the trace's order of calls and cache size. It is optimistic: blocks stand alone
(a real hit needs every block before it as well), running calls need no room for their other blocks,
and a block may stay out of the cache. Source: L. A. Belady, 1966.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from vllm_helium.simulator.access_trace import AccessTrace


@dataclass(frozen=True)
class OfflineBound:
    """Hits on full prompt blocks.

    Attributes:
        num_lookups: Full prompt blocks asked for.
        num_hits: At most, with the given capacity and the trace's order.
        num_hits_unbounded: With a cache that holds everything, in any order with the same calls.
    """

    num_lookups: int
    num_hits: int
    num_hits_unbounded: int


def belady_bound(trace: AccessTrace, num_blocks: int) -> OfflineBound:
    """Returns the bound for a cache of ``num_blocks`` blocks; O(accesses * log accesses)."""
    never = len(trace.blocks)
    # Position of the next lookup of the same block, if it comes before the block is written anew:
    # keeping a block until it is written gains nothing.
    next_use = [never] * never
    upcoming: dict[int, int] = {}
    for position in range(never - 1, -1, -1):
        block = trace.blocks[position]
        next_use[position] = upcoming.get(block, never)
        upcoming[block] = position if trace.is_lookup[position] else never
    cached: dict[int, int] = {}  # block -> its next use
    farthest: list[tuple[int, int]] = []  # (-next use, block), with stale entries
    num_hits = num_hits_unbounded = 0
    seen: set[int] = set()
    for position, block in enumerate(trace.blocks):
        if trace.is_lookup[position]:
            num_hits += block in cached
            num_hits_unbounded += block in seen
        seen.add(block)
        if next_use[position] == never:
            cached.pop(block, None)
            continue
        cached[block] = next_use[position]
        heapq.heappush(farthest, (-next_use[position], block))
        while len(cached) > num_blocks:
            use, victim = heapq.heappop(farthest)
            if cached.get(victim) == -use:
                del cached[victim]
    return OfflineBound(trace.num_lookups, num_hits, num_hits_unbounded)
