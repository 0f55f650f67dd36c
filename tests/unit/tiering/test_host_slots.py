"""What the index keeps on the host, gives back, and gives up."""

from __future__ import annotations

from array import array

import pytest

from helium.errors import CacheError, ConfigError
from vllm_helium.prefix_cache.index import NO_BLOCK, PrefixIndex
from vllm_helium.tiering.options import HostTierOptions

BLOCK = 4


def make(num_blocks=4, num_slots=8):
    return PrefixIndex(num_blocks, BLOCK, min_partial_tokens=2, num_slots=num_slots)


def tokens(*values):
    return array("i", values)


def cache(index, first, num_blocks, name=b"", tags=()):
    """Caches a prompt of its own, written in a step of its own; returns its tokens."""
    prompt = array("i", range(first, first + num_blocks * BLOCK))
    blocks = index.evict(num_blocks)
    index.insert(NO_BLOCK, name, prompt, len(prompt), 0, blocks, [], list(tags))
    index.release(blocks[::-1])
    index.take_moves()
    index.advance(0.0)
    return prompt


def fill(index, num_blocks):
    """Takes blocks for something that is not cached, and gives them back."""
    blocks = index.evict(num_blocks)
    moves = index.take_moves()
    index.release(blocks)
    index.check_integrity()
    return moves


def test_what_is_evicted_is_stored_and_found_again():
    index = make()
    prompt = cache(index, 0, 3)
    (blocks, slots), loads, prefetches = fill(index, 4)
    assert len(blocks) == len(set(slots)) == 3 and loads == prefetches == ([], [])
    match = index.match(b"", prompt, 11)
    assert (match.blocks, match.num_tokens) == ([], 0)
    assert match.num_host_tokens == 11 and len(match.slots) == 3, "the last block is partial"


def test_a_match_goes_from_the_device_on_into_the_host():
    index = make()
    prompt = cache(index, 0, 3)
    fill(index, 2)  # one unindexed block, then the path's end
    match = index.match(b"", prompt, 12)
    assert (match.num_tokens, match.num_host_tokens) == (8, 4)


def test_host_copies_belong_to_their_namespace():
    index = make()
    prompt = cache(index, 0, 2, name=b"tenant")
    fill(index, 4)
    assert index.match(b"tenant", prompt, 8).num_host_tokens == 8
    assert index.match(b"", prompt, 8).num_host_tokens == 0


def test_nothing_survives_a_reset():
    index = make()
    prompt = cache(index, 0, 3)
    fill(index, 4)
    index.reset()
    index.check_integrity()
    assert index.match(b"", prompt, 12).slots == []
    index.advance(1.0)
    assert index.stats()["host"]["slots"]["unindexed"] == 8


def test_what_this_step_writes_is_not_stored():
    index = make()
    prompt = tokens(*range(4))
    blocks = index.evict(1)
    index.insert(NO_BLOCK, b"", prompt, 4, 0, blocks)
    index.release(blocks)
    stores, _, _ = fill(index, 4)
    assert stores == ([], [])
    assert index.match(b"", prompt, 4).slots == []


def test_a_full_host_gives_up_the_least_recently_stored():
    index = make(num_blocks=3, num_slots=2)
    prompts = [cache(index, 100 * i, 1) for i in range(3)]
    fill(index, 3)
    index.advance(1.0)
    others = cache(index, 1000, 1)
    fill(index, 3)
    assert index.match(b"", others, 4).num_host_tokens == 4
    kept = [index.match(b"", prompt, 4).num_host_tokens for prompt in prompts]
    assert sum(kept) == 4, "the first two slots were taken in this order"


def test_what_a_plan_will_not_read_again_is_dropped_and_what_it_will_stays():
    index = make(num_slots=1)
    wanted, unwanted = index.tag(0, 1), index.tag(0, 2)
    index.set_uses(wanted, 1, 5)
    index.set_uses(unwanted, 0, 0)
    dead = cache(index, 0, 1, tags=[(4, unwanted)])
    live = cache(index, 100, 1, tags=[(4, wanted)])
    fill(index, 4)
    assert index.match(b"", dead, 4).slots == []
    assert len(index.match(b"", live, 4).slots) == 1


def test_a_prefetch_takes_free_blocks_and_counts_what_was_used():
    index = make()
    wanted = index.tag(0, 1)
    index.set_uses(wanted, 1, 5)
    prompt = cache(index, 0, 2, tags=[(8, wanted)])
    fill(index, 4)
    index.advance(1.0)
    assert index.prefetch(b"", prompt, 1) == 1
    index.advance(2.0)
    assert index.prefetch(b"", prompt, 8) == 1 and index.prefetch(b"", prompt, 8) == 0
    _, _, (blocks, slots) = index.take_moves()
    assert len(blocks) == len(slots) == 2
    index.check_integrity()
    match = index.match(b"", prompt, 8)
    assert match.num_tokens == 8
    index.acquire(match.blocks)
    host = index.stats()["host"]
    assert (host["num_prefetched"], host["num_prefetches_used"]) == (2, 2)


def test_a_prefetch_leaves_blocks_that_are_needed_earlier():
    index = make(num_blocks=2)
    soon, late = index.tag(0, 1), index.tag(0, 2)
    index.set_uses(late, 1, 9)
    prompt = cache(index, 0, 2, tags=[(8, late)])
    fill(index, 2)
    index.advance(1.0)
    index.set_uses(soon, 1, 1)
    cache(index, 100, 2, tags=[(8, soon)])
    index.advance(2.0)
    assert index.prefetch(b"", prompt, 8) == 0


def test_misuse_of_slots_raises():
    index = make()
    with pytest.raises(CacheError, match="out of range"):
        index.lock_slots([8])
    held = index.evict(1)
    with pytest.raises(CacheError, match="must be locked"):
        index.load(held, [0])
    with pytest.raises(CacheError, match="as many of each"):
        index.load(held, [])
    with pytest.raises(CacheError, match="must be held"):
        index.load(index.free_blocks()[:1], [0])


def test_sizes_become_numbers_of_blocks():
    options = HostTierOptions.of_sizes(1 << 20, 1 << 16, 1 << 12)
    assert (options.num_slots, options.max_step_blocks) == (256, 16)
    assert HostTierOptions.of_sizes(0, 1, 4096).num_slots == 0
    with pytest.raises(ConfigError, match="host_gib"):
        HostTierOptions.of_sizes(100, 1, 4096)
