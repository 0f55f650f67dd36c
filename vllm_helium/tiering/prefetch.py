"""What should come back from the host before its request does.

Two sources, nearest need first: prompts that wait for a longer prefix than one step may load, and
what the next calls of the plans in progress read. Prefetched blocks take the place of blocks that
are needed later, or never.

Source: Helium, section 5 (proactive caching); prefetch on the plan's edges is ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vllm_helium.prefix_cache.index import PrefixIndex

MAX_EXPECTED = 4096
"""Tags kept for later steps; beyond it the oldest goes."""

MAX_TAGS_PER_STEP = 32
"""Tags looked at in one step, which bounds what a step costs the scheduler."""


@dataclass
class WaitingPrefix:
    """A waiting request's tokens, as the index takes them."""

    namespace: bytes
    tokens: Any
    labels: list[tuple[int, bytes]]


class Prefetcher:
    """Brings blocks back, a bounded number per step.

    Args:
        max_step_blocks: Bound on the blocks of one step.
    """

    def __init__(self, index: PrefixIndex, max_step_blocks: int) -> None:
        self._index = index
        self._max_step_blocks = max_step_blocks
        self._waiting: list[WaitingPrefix] = []
        self._expected: OrderedDict[int, None] = OrderedDict()

    def want(self, prefix: WaitingPrefix) -> None:
        """Asks for a prefix of a request that waits; for this step only."""
        self._waiting.append(prefix)

    def expect(self, tags: Iterable[int]) -> None:
        """Notes what calls of a plan will read soon."""
        for tag in tags:
            self._expected[tag] = None
            self._expected.move_to_end(tag)
        while len(self._expected) > MAX_EXPECTED:
            self._expected.popitem(last=False)

    def run(self, num_loaded: int) -> int:
        """Asks the index for this step's prefetches; returns the number of blocks.

        Args:
            num_loaded: Blocks that requests loaded in this step, which count against the bound.
        """
        budget = self._max_step_blocks - num_loaded
        num_blocks = 0
        for prefix in self._waiting:
            if num_blocks >= budget:
                break
            num_blocks += self._index.prefetch(
                prefix.namespace, prefix.tokens, budget - num_blocks, prefix.labels
            )
        self._waiting.clear()
        for tag in list(islice(self._expected, MAX_TAGS_PER_STEP)):
            if num_blocks >= budget:
                break
            num_blocks += self._index.prefetch_tag(tag, budget - num_blocks)
            # What found no room is tried again after the others.
            if self._index.num_host_only(tag):
                self._expected.move_to_end(tag)
            else:
                del self._expected[tag]
        return num_blocks
