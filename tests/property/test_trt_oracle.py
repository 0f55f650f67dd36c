"""The prefix index against a dumb oracle: a map from each block to the prefix it must encode.

The oracle knows, for every indexed block, the namespace and the whole token prefix up to the
block's end. It finds the best possible match by comparing against all of them.
"""

from __future__ import annotations

from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vllm_helium.prefix_cache.index import NO_BLOCK, PrefixIndex

MIN_PARTIAL = 2
NAMESPACES = (b"", b"tenant")


def common(left, right):
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


class Oracle:
    """Indexed blocks by id: (namespace, prefix up to the block's end, step that writes it)."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.blocks = {}
        self.step = 0

    def best(self, namespace, prompt):
        """Longest match by trying every cached prefix: (whole tokens, tokens with a partial)."""
        size = self.block_size
        known = [entry for entry in self.blocks.values() if entry[0] == namespace]
        whole = {entry[1] for entry in known if len(entry[1]) % size == 0}
        full = 0
        while full + size <= len(prompt) and tuple(prompt[: full + size]) in whole:
            full += size
        best = 0
        for _, prefix, written in known:
            start = (len(prefix) - 1) // size * size
            if start == full and prefix[:full] == tuple(prompt[:full]) and written < self.step:
                best = max(best, common(prefix[full:], prompt[full:]))
        return full, full + (best if best >= MIN_PARTIAL else 0)


class IndexMachine(RuleBasedStateMachine):
    """Requests come, share prefixes, finish, and the pool runs over; lookups must stay exact."""

    @initialize(
        block_size=st.sampled_from([1, 3, 4, 16, 17]), num_blocks=st.sampled_from([4, 9, 40])
    )
    def start(self, block_size, num_blocks):
        self.index = PrefixIndex(
            num_blocks,
            block_size,
            MIN_PARTIAL,
            max_leased_blocks=num_blocks // 4,
            max_protected_blocks=num_blocks // 2,
        )
        self.oracle = Oracle(block_size)
        self.num_blocks = num_blocks
        self.references = dict.fromkeys(range(num_blocks), 0)
        self.running = []
        self.texts = [()]
        self.now = 0.0

    def drop_unindexed(self):
        self.oracle.blocks = {
            block: entry
            for block, entry in self.oracle.blocks.items()
            if self.index.is_indexed(block)
        }

    @rule(data=st.data(), namespace=st.sampled_from(NAMESPACES), plan=st.integers(-1, 1))
    def admit(self, data, namespace, plan):
        size = self.oracle.block_size
        base = data.draw(st.sampled_from(self.texts))
        cut = data.draw(st.integers(0, len(base)))
        length = data.draw(
            st.sampled_from(sorted({1, max(size - 1, 1), size, size + 1, 17, 3 * size}))
        )
        new = data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
        prompt = (*base[:cut], *new)
        self.texts = [*self.texts[-20:], prompt]
        buffer = array("i", prompt)
        match = self.index.match(namespace, buffer, len(prompt))
        full, best = self.oracle.best(namespace, prompt)
        assert match.num_tokens == max(full, best)
        for position, block in enumerate(match.blocks):
            entry = self.oracle.blocks[block]
            end = min((position + 1) * size, match.num_tokens)
            assert entry[0] == namespace and entry[1][:end] == prompt[:end]
            if end % size:
                assert entry[2] < self.oracle.step
        hits = match.blocks[: match.num_tokens // size]
        num_new = -(-len(prompt) // size) - len(hits)
        taken = [block for block in hits if not self.references[block]]
        if num_new + len(taken) > self.index.num_free:
            return
        self.index.acquire(taken)
        tags = [(len(prompt), self.index.tag(plan, 0, len(prompt) % 3))] if plan >= 0 else []
        self.index.claim(hits, tags)
        fresh = self.index.evict(num_new)
        assert not any(self.references[block] for block in fresh)
        self.drop_unindexed()
        blocks = hits + fresh
        for block in blocks:
            self.references[block] += 1
        num_full = len(prompt) // size
        parent = hits[-1] if hits else NO_BLOCK
        added = blocks[len(hits) : num_full]
        self.index.insert(parent, namespace, buffer, len(prompt), len(hits), added, [], tags)
        for position in range(len(hits), num_full):
            prefix = prompt[: (position + 1) * size]
            self.oracle.blocks[blocks[position]] = (namespace, prefix, self.oracle.step)
        self.drop_unindexed()
        self.running.append((namespace, prompt, blocks))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        which = data.draw(st.integers(0, len(self.running) - 1))
        namespace, prompt, blocks = self.running.pop(which)
        size = self.oracle.block_size
        num_full, rest = divmod(len(prompt), size)
        parent = blocks[num_full - 1] if num_full else NO_BLOCK
        buffer = array("i", prompt)
        if rest and not self.index.covers(parent, namespace, buffer, num_full * size, rest):
            self.index.insert(parent, namespace, buffer, len(prompt), num_full, [blocks[-1]])
            self.oracle.blocks[blocks[-1]] = (namespace, prompt, self.oracle.step)
        freed = []
        for block in reversed(blocks):
            self.references[block] -= 1
            if not self.references[block]:
                freed.append(block)
        self.index.release(freed)
        self.drop_unindexed()

    @rule(seconds=st.integers(0, 3))
    def advance(self, seconds):
        self.now += seconds
        self.index.advance(self.now)
        self.oracle.step += 1

    @rule(
        plan=st.integers(0, 1), row=st.integers(0, 2), uses=st.integers(0, 2), at=st.integers(0, 9)
    )
    def plan_changes(self, plan, row, uses, at):
        self.index.set_uses(self.index.tag(plan, 0, row), uses, at)

    @rule(plan=st.integers(0, 1))
    def plan_ends(self, plan):
        self.index.close_plan(plan)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.integers(1, 4))
    def lease(self, data, seconds):
        _, _, blocks = data.draw(st.sampled_from(self.running))
        self.index.lease_blocks(blocks, float(seconds))

    @rule()
    def reset(self):
        self.index.reset()
        self.oracle.blocks.clear()

    @invariant()
    def the_index_is_sound_and_indexes_what_the_oracle_knows(self):
        if not hasattr(self, "index"):
            return
        self.index.check_integrity()
        held = sum(1 for count in self.references.values() if count)
        assert self.index.num_free == self.num_blocks - held
        assert self.index.stats()["num_indexed"] == len(self.oracle.blocks)

    def teardown(self):
        if not hasattr(self, "index"):
            return
        while self.running:
            _, _, blocks = self.running.pop()
            freed = []
            for block in reversed(blocks):
                self.references[block] -= 1
                if not self.references[block]:
                    freed.append(block)
            self.index.release(freed)
        self.index.check_integrity()
        assert self.index.num_free == self.num_blocks


IndexMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestIndexMachine = IndexMachine.TestCase


@pytest.mark.parametrize("block_size", [1, 16, 17])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_match_equals_the_best_of_all_cached_prompts(block_size, data):
    """Without eviction: many prompts, then one lookup each, at and around block boundaries."""
    oracle, index = Oracle(block_size), PrefixIndex(2048, block_size, MIN_PARTIAL)
    sizes = [1, 17, max(block_size - 1, 1), block_size, block_size + 1, 5 * block_size + 3]
    prompts = data.draw(
        st.lists(
            st.sampled_from(sizes).flatmap(
                lambda size: st.lists(st.integers(0, 1), min_size=size, max_size=size)
            ),
            min_size=1,
            max_size=12,
        )
    )
    for prompt in prompts:
        blocks = index.evict(-(-len(prompt) // block_size))
        index.insert(NO_BLOCK, b"", array("i", prompt), len(prompt), 0, blocks)
        for position, block in enumerate(blocks):
            prefix = tuple(prompt[: (position + 1) * block_size])
            oracle.blocks[block] = (b"", prefix, oracle.step)
        index.advance(0.0)
        oracle.step += 1
        index.release(blocks[::-1])
    for prompt in prompts + [[*prompt, 7] for prompt in prompts]:
        match = index.match(b"", array("i", prompt), len(prompt))
        assert match.num_tokens == max(oracle.best(b"", prompt))
    index.check_integrity()


def test_a_large_prompt_set_matches_and_stays_sound():
    """1,000 prompts of 3,000 tokens over a shared head: every one is found in full."""
    index = PrefixIndex(200_000, 16)
    head = list(range(1_000))
    prompts = [
        array("i", [*head, *(seed * 7 + i % 97 for i in range(2_000))]) for seed in range(1_000)
    ]
    for prompt in prompts:
        hit = index.match(b"", prompt, len(prompt) - 1)
        num_hit = hit.num_tokens // 16
        index.acquire([b for b in hit.blocks[:num_hit] if index.place(b) != "held"])
        fresh = index.evict(-(-len(prompt) // 16) - num_hit)
        parent = hit.blocks[num_hit - 1] if num_hit else NO_BLOCK
        index.insert(parent, b"", prompt, len(prompt), num_hit, fresh)
        index.release([*fresh[::-1], *hit.blocks[:num_hit][::-1]])
        index.advance(0.0)
    for prompt in prompts:
        assert index.match(b"", prompt, len(prompt)).num_tokens == len(prompt)
    index.check_integrity()
