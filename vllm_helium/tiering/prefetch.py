"""What comes back from the host before its request is admitted.

Only what a request waits for that will be admitted in the next step: its turn is next, and there is
room that nobody else gets meanwhile. While a request waits for room, what came back for it would be
given up again: in a simulated full cache 44 % was. Blocks that come back take the place of blocks
that are needed later, or never.

Source: Helium, section 5 (proactive caching). Prefetching what the plan's next operators read while
the operator before them runs was tried and dropped: an answer takes hundreds of steps, a transfer
one, and in a full cache most of it was evicted again before anything read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_helium.prefix_cache.index import PrefixIndex


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

    def run(self, waiting: list[WaitingPrefix], num_loaded: int) -> int:
        """Asks the index for this step's prefetches; returns the number of blocks.

        Args:
            waiting: Prefixes of requests that wait, the next one first.
            num_loaded: Blocks that requests loaded in this step, which count against the bound.
        """
        budget = self._max_step_blocks - num_loaded
        num_blocks = 0
        for prefix in waiting:
            if num_blocks >= budget:
                break
            num_blocks += self._index.prefetch(
                prefix.namespace, prefix.tokens, budget - num_blocks, prefix.labels
            )
        return num_blocks
