"""The compiled prefix index: lookup, places and order of eviction, tags, leases, diagnosis."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from helium.errors import CacheError
from vllm_helium.prefix_cache.index import NO_BLOCK, NO_TAG, PLACES, PrefixIndex, TokenBuffer

BLOCK = 4


def make(num_blocks=16, min_partial_tokens=2, **options):
    return PrefixIndex(num_blocks, BLOCK, min_partial_tokens, **options)


def tokens(*values):
    return array("i", values)


def cache(index, prompt, namespace=b"", tags=(), labels=(), keep=False):
    """Caches a prompt as a request would, in a step of its own; returns its blocks."""
    prompt = array("i", prompt)
    blocks = index.evict(-(-len(prompt) // BLOCK))
    assert index.insert(NO_BLOCK, namespace, prompt, len(prompt), 0, blocks, labels, tags) == len(
        blocks
    )
    index.advance(0.0)
    if not keep:
        index.release(blocks[::-1])
    return blocks


def lookup(index, prompt, namespace=b"", **options):
    prompt = array("i", prompt)
    return index.match(namespace, prompt, len(prompt), **options)


@pytest.fixture
def index():
    index = make()
    yield index
    index.check_integrity()


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 17, 4096])
def test_match_returns_the_cached_prefix_of_any_length(size):
    index = make(num_blocks=2048)
    prompt = list(range(size))
    blocks = cache(index, prompt)
    match = lookup(index, prompt)
    usable = size if size % BLOCK >= 2 or size % BLOCK == 0 else size - size % BLOCK
    assert match.num_tokens == usable
    assert match.blocks == blocks[: -(-usable // BLOCK)]
    index.check_integrity()


def test_match_takes_every_form_of_int32_tokens(index):
    prompt = list(range(9))
    cache(index, prompt)
    buffer = TokenBuffer()
    buffer.sync(prompt)
    forms = [array("i", prompt), np.arange(9, dtype=np.int32), buffer, array("i", prompt).tobytes()]
    assert [index.match(b"", form, 9).num_tokens for form in forms] == [8] * 4


@pytest.mark.parametrize("form", [[1, 2], np.arange(4, dtype=np.int64), "text", b"abc"])
def test_tokens_of_another_type_are_refused_with_the_fix(index, form):
    with pytest.raises(CacheError, match="tokens: expected"):
        index.match(b"", form, 1)


def test_token_buffer_follows_its_list_forward_and_back():
    index, buffer, prompt = make(), TokenBuffer(), list(range(8))
    cache(index, prompt)
    buffer.sync(prompt[:5])
    assert len(buffer) == 5
    buffer.sync(prompt)
    assert index.match(b"", buffer, 8).num_tokens == 8
    buffer.sync(prompt[:3])
    assert len(buffer) == 3
    with pytest.raises(CacheError, match="not an int32"):
        buffer.sync([1, 2, 3, 1 << 40])


def test_siblings_that_share_leading_tokens_are_told_apart(index):
    first = cache(index, [1, 2, 3, 4])
    second = cache(index, [1, 2, 3, 5])
    assert lookup(index, [1, 2, 3, 4]).blocks == first
    assert lookup(index, [1, 2, 3, 5]).blocks == second


def test_partial_match_takes_the_longest_common_prefix(index):
    cache(index, [1, 2, 8, 8])
    best = cache(index, [1, 2, 3, 8])
    cache(index, [1, 9, 9, 9])
    match = lookup(index, [1, 2, 3, 4, 5])
    assert (match.blocks, match.num_tokens) == (best, 3)


def test_partial_match_shorter_than_the_minimum_is_no_hit():
    index = make(min_partial_tokens=3)
    cache(index, [1, 2, 9, 9])
    match = lookup(index, [1, 2, 3, 4])
    assert (match.num_tokens, match.reason, match.miss_token) == (0, "below_block", 2)


def test_partial_match_never_reads_what_the_same_step_writes(index):
    blocks = index.evict(1)
    index.insert(NO_BLOCK, b"", tokens(1, 2, 3, 4), 4, 0, blocks)
    assert lookup(index, [1, 2, 3, 9]).num_tokens == 0
    assert lookup(index, [1, 2, 3, 4]).num_tokens == 4
    index.advance(0.0)
    assert lookup(index, [1, 2, 3, 9]).num_tokens == 3


@pytest.mark.parametrize(("shared", "pending"), [(6, 2), (5, 0), (4, 0), (8, 0), (7, 3)])
def test_a_match_tells_what_the_next_step_will_find(index, shared, pending):
    prompt = array("i", range(8))
    blocks = index.evict(2)
    index.insert(NO_BLOCK, b"", prompt, 8, 0, blocks)
    asked = [*range(shared), *range(90, 98 - shared)]
    now = lookup(index, asked)
    assert (now.num_tokens, now.num_pending_tokens) == (shared // BLOCK * BLOCK, pending)
    index.advance(0.0)
    later = lookup(index, asked)
    assert (later.num_tokens, later.num_pending_tokens) == (now.num_tokens + pending, 0)


def test_only_a_partial_block_is_forgotten_as_one(index):
    whole, partial = cache(index, range(6), keep=True)
    assert not index.forget_partial(whole)
    assert index.forget_partial(partial)
    assert not index.forget_partial(partial)
    assert lookup(index, range(6)).num_tokens == 4
    index.release([partial, whole])


def test_partial_match_prefers_a_written_block_over_a_duplicate_of_the_same_step(index):
    written = cache(index, [1, 2, 3, 4], keep=True)
    duplicate = index.evict(1)
    index.insert(NO_BLOCK, b"", tokens(1, 2, 3, 4), 4, 0, duplicate)
    assert lookup(index, [1, 2, 3, 9]).blocks == written


def test_namespaces_do_not_see_each_other_and_the_miss_says_so(index):
    cache(index, [1, 2, 3, 4], namespace=b"salt")
    match = lookup(index, [1, 2, 3, 4])
    assert (match.num_tokens, match.reason) == (0, "other_namespace")


def test_labelled_blocks_match_only_whole_and_under_their_label(index):
    cache(index, [1, 2, 3, 4, 5, 6, 7, 8], labels=[(0, b"image-a")])
    assert lookup(index, [1, 2, 3, 4, 5], labels=[(0, b"image-a")]).num_tokens == 4
    assert lookup(index, [1, 2, 3, 4], labels=[(0, b"image-b")]).num_tokens == 0
    assert lookup(index, [1, 2, 3, 4]).num_tokens == 0
    assert lookup(index, [1, 2, 3, 9], labels=[(0, b"image-a")]).num_tokens == 0


def test_eviction_is_least_recently_used_and_leaf_first(index):
    old = cache(index, range(8))
    new = cache(index, range(100, 108))
    index.evict(index.num_free - 4)
    assert index.evict(4) == [old[1], old[0], new[1], new[0]]


def test_a_hit_renews_a_prefix(index):
    old = cache(index, range(8))
    new = cache(index, range(100, 108))
    index.acquire(old)
    index.release(old[::-1])
    index.evict(index.num_free - 4)
    assert index.evict(4) == [new[1], new[0], old[1], old[0]]


def test_evict_never_takes_a_held_block(index):
    held = cache(index, range(8), keep=True)
    taken = index.evict(index.num_free)
    assert not set(held) & set(taken)
    with pytest.raises(CacheError, match="only 0 are free"):
        index.evict(1)


def test_places_give_up_blocks_in_their_order():
    index = make(num_blocks=9, max_protected_blocks=9, max_leased_blocks=9)
    tag = {name: index.tag(0, node) for node, name in enumerate(("dead", "soon", "late"))}
    index.set_uses(tag["soon"], 1, 10)
    index.set_uses(tag["late"], 1, 20)
    blocks = {}
    for first, name in enumerate(("soon", "late", "dead")):
        prompt = [first * 10 + i for i in range(4)]
        [blocks[name]] = cache(index, prompt, tags=[(4, tag[name])])
    [blocks["ordinary"]] = cache(index, [50, 51, 52, 53])
    [blocks["tail"]] = cache(index, [60, 61, 62])
    [blocks["leased"]] = cache(index, [70, 71, 72, 73])
    assert index.lease_blocks([blocks["leased"]], 60.0) != NO_TAG
    [blocks["kept"]] = cache(index, [80, 81, 82, 83], keep=True)
    [blocks["duplicate"]] = cache(index, [80, 81, 82, 83])
    index.check_integrity()
    unindexed = index.evict(1)
    index.release(unindexed)
    order = ["duplicate", "tail", "dead", "ordinary", "late", "soon", "leased"]
    assert index.evict(8) == unindexed + [blocks[name] for name in order]
    index.check_integrity()


def test_a_parent_outlives_its_children_whatever_its_place():
    index = make(num_blocks=4, max_protected_blocks=4)
    dead, wanted = index.tag(0, 0), index.tag(0, 1)
    index.set_uses(wanted, 1, 1)
    parent, child = cache(index, range(8), tags=[(4, dead), (8, wanted)])
    assert index.place(parent) == "interior"
    assert index.evict(4)[-2:] == [child, parent]


def test_a_change_of_next_use_reorders_cached_blocks():
    index = make(num_blocks=2, max_protected_blocks=2)
    near, far = index.tag(0, 0), index.tag(0, 1)
    index.set_uses(near, 1, 1)
    index.set_uses(far, 1, 2)
    [first] = cache(index, [1, 2, 3, 4], tags=[(4, near)])
    [second] = cache(index, [5, 6, 7, 8], tags=[(4, far)])
    index.set_uses(near, 1, 3)
    assert index.free_blocks() == [first, second]
    index.set_uses(far, 0, 0)
    assert index.place(second) == "dead"
    assert index.evict(2) == [second, first]


def test_calls_of_one_rank_read_row_by_row_and_shared_text_is_needed_first():
    index = make(num_blocks=3, max_protected_blocks=3)
    blocks = {}
    for first, row in enumerate((1, NO_TAG, 0)):
        tag = index.tag(0, 0, row)
        index.set_uses(tag, 1, 7)
        [blocks[row]] = cache(index, [10 * first + i for i in range(4)], tags=[(4, tag)])
    assert index.evict(3) == [blocks[1], blocks[0], blocks[NO_TAG]]


def test_blocks_others_use_survive_the_end_of_a_plan_as_ordinary_ones():
    index = make(max_protected_blocks=16)
    tag = index.tag(7, 0)
    index.set_uses(tag, 1, 1)
    shared = cache(index, [1, 2, 3, 4], tags=[(4, tag)])
    own = cache(index, [5, 6, 7, 8], tags=[(4, tag)])
    index.acquire(shared)
    index.claim(shared)
    index.release(shared)
    index.close_plan(7)
    assert (index.place(shared[0]), index.place(own[0])) == ("recent", "dead")
    index.check_integrity()


def test_protected_blocks_beyond_their_share_go_before_ordinary_ones():
    index = make(num_blocks=4, max_protected_blocks=1)
    tag = index.tag(0, 0)
    index.set_uses(tag, 2, 1)
    planned = cache(index, range(8), tags=[(8, tag)])
    ordinary = cache(index, range(50, 58))
    assert index.evict(2) == [planned[1], ordinary[1]]
    index.check_integrity()


def test_a_lease_expires_and_a_use_renews_it():
    index = make(max_leased_blocks=4, max_protected_blocks=16)
    blocks = cache(index, range(8))
    index.lease_blocks(blocks, 10.0)
    index.advance(8.0)
    index.acquire(blocks)
    index.release(blocks[::-1])
    index.advance(12.0)
    assert index.place(blocks[1]) == "leased"
    index.advance(18.0)
    assert index.place(blocks[1]) == "recent"
    index.check_integrity()
    index.evict(16)
    assert index.stats()["num_tags"] == 0


def test_leases_beyond_the_budget_drop_the_one_that_expires_first():
    index = make(max_leased_blocks=3, max_protected_blocks=16)
    first, second = cache(index, range(8)), cache(index, range(50, 58))
    assert index.lease_blocks(first, 10.0) != NO_TAG
    assert index.lease_blocks(second, 20.0) != NO_TAG
    assert (index.place(first[1]), index.place(second[1])) == ("recent", "leased")
    third = cache(index, range(70, 78))
    assert index.lease_blocks(third, 5.0) == NO_TAG
    assert index.stats()["num_leases_dropped"] == 2
    index.check_integrity()


def test_every_leased_block_can_still_be_taken():
    index = make(num_blocks=4, max_leased_blocks=4, max_protected_blocks=4)
    blocks = cache(index, range(16))
    index.lease_blocks(blocks, 60.0)
    assert sorted(index.evict(4)) == sorted(blocks)
    index.check_integrity()


def test_a_longer_path_replaces_the_free_tail_it_extends(index):
    [tail] = cache(index, [1, 2, 3])
    assert index.covers(NO_BLOCK, b"", tokens(1, 2), 0, 2)
    cache(index, [1, 2, 3, 4])
    assert index.place(tail) == "unindexed"


def test_forget_drops_what_only_led_through_the_block(index):
    blocks = cache(index, range(12))
    assert index.forget(blocks[0])
    assert [index.is_indexed(block) for block in blocks] == [False] * 3
    assert not index.forget(blocks[0])
    assert index.insert(blocks[0], b"", array("i", range(8)), 8, 1, index.evict(1)) == 0


def test_a_duplicate_keeps_the_path_when_the_first_block_goes(index):
    first = cache(index, range(8), keep=True)
    again = index.evict(1)
    index.insert(NO_BLOCK, b"", array("i", range(8)), 8, 0, again)
    index.forget(first[0])
    assert lookup(index, range(8)).blocks == [again[0], first[1]]


def test_reset_forgets_everything_and_keeps_held_blocks(index):
    held = cache(index, range(8), keep=True)
    cache(index, range(50, 58))
    index.reset()
    assert lookup(index, range(8)).num_tokens == 0
    assert index.num_free == 14
    index.release(held)
    assert index.evict(16) and index.num_free == 0


def test_a_miss_says_what_evicted_the_block_and_how_long_ago():
    index = make(num_blocks=2, max_protected_blocks=2)
    cache(index, [1, 2, 3, 4])
    index.advance(5.0)
    index.release(index.evict(2))
    index.advance(7.5)
    match = lookup(index, [1, 2, 3, 4])
    assert (match.reason, match.evicted_as, match.evicted_ago_s) == ("evicted", "recent", 2.5)


def test_a_miss_on_what_a_plan_still_wanted_is_a_lack_of_capacity():
    index = make(num_blocks=2, max_protected_blocks=2)
    tag = index.tag(0, 0)
    index.set_uses(tag, 1, 1)
    cache(index, [1, 2, 3, 4], tags=[(4, tag)])
    index.evict(2)
    match = lookup(index, [1, 2, 3, 4])
    assert (match.reason, match.evicted_as) == ("capacity", "next_use")


def test_a_miss_inside_the_static_text_of_a_plan_is_drift():
    index = make(max_protected_blocks=16)
    tag = index.tag(3, 0)
    index.set_uses(tag, 9, 1)
    cache(index, range(8), tags=[(8, tag)])
    drifted = [0, 1, 2, 3, 4, 5, 99, 7]
    match = lookup(index, drifted, plan=3, num_static_tokens=8)
    assert (match.reason, match.miss_token) == ("template_drift", 6)
    assert lookup(index, drifted).reason == "never_seen"


def test_a_first_sight_is_never_seen_and_a_full_hit_has_no_reason(index):
    assert lookup(index, [1, 2, 3, 4]).reason == "never_seen"
    cache(index, [1, 2, 3, 4])
    match = lookup(index, [1, 2, 3, 4])
    assert (match.reason, match.evicted_as) == ("none", None)


def test_a_closed_plan_leaves_no_tag_behind():
    index = make(max_protected_blocks=16)
    tag = index.tag(1, 0)
    index.set_uses(tag, 1, 1)
    blocks = cache(index, range(8), tags=[(8, tag)])
    index.close_plan(1)
    assert index.stats()["num_tags"] == 1
    assert index.evict(16) and not index.is_indexed(blocks[0])
    assert index.stats()["num_tags"] == 0
    with pytest.raises(CacheError, match="its plan may be closed"):
        index.set_uses(tag, 1, 1)


def test_the_index_costs_less_than_100_bytes_per_block_without_the_tokens():
    num_blocks = 4096
    index = make(num_blocks=num_blocks)
    cache(index, range(num_blocks * BLOCK))
    stats = index.stats()
    assert stats["num_indexed"] == num_blocks
    assert stats["num_bytes"] / num_blocks < 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.release([0]), "free already"),
        (lambda index: index.acquire(index.evict(1)), "not free"),
        (lambda index: index.place(16), "out of range"),
        (lambda index: index.tag(-1, 0), "not negative"),
        (lambda index: index.lease(0, 1.0), "is unknown"),
        (lambda index: index.match(b"", tokens(1), 2), "cannot match"),
        (lambda index: index.insert(NO_BLOCK, b"", tokens(1), 1, 0, [0]), "must be held"),
        (lambda index: index.insert(NO_BLOCK, b"", tokens(1), 1, 0, index.evict(2)), "need more"),
    ],
)
def test_misuse_raises_and_changes_nothing(index, call, message):
    with pytest.raises(CacheError, match=message):
        call(index)


def test_places_are_named():
    assert PLACES[0] == "held" and len(PLACES) == 9


def test_objects_of_blocks_come_out_of_the_list_of_all(index):
    names = [f"block-{i}" for i in range(16)]
    taken = index.evict_from(names, 2)
    assert taken == ["block-0", "block-1"]
    index.insert(NO_BLOCK, b"", array("i", range(8)), 8, 0, [0, 1])
    match = lookup(index, range(8))
    assert match.select(names) == taken
    with pytest.raises(CacheError, match="not among"):
        match.select(names[:1])
    with pytest.raises(CacheError, match="all blocks"):
        index.evict_from(names[:1], 1)


@pytest.mark.parametrize(
    "value", [0, 1, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, -1, -(1 << 31), True]
)
def test_token_buffer_reads_every_int32(value):
    index, buffer = PrefixIndex(2, 1, 1), TokenBuffer()
    buffer.sync([value])
    index.insert(NO_BLOCK, b"", buffer, 1, 0, index.evict(1))
    assert index.match(b"", array("i", [value]), 1).num_tokens == 1
