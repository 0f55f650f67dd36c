"""Longest shared prefix first, as SGLang orders waiting calls (its policy ``lpm``).

Written from the paper (SGLang, arXiv 2312.07104, §3: cache-aware scheduling) and the documented
behaviour of its scheduler: before each step, waiting calls are sorted by the length of their cached
prefix; a call that has next to none, but shares one with a call before it in the queue, goes last,
so that the first computes what the others then find; beyond 128 waiting calls the order is first
come, first served.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput

MAX_SORTED = 128
"""More waiting calls than this are not sorted."""

MIN_SHARED_TOKENS = 32
"""A cached prefix up to this long counts as none, and one this long is worth waiting for."""


class LspfScheduler(AsyncScheduler):
    """vLLM's scheduler with SGLang's order of waiting calls."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if 1 < len(self.waiting) <= MAX_SORTED:
            self._sort()
        return super().schedule(*args, **kwargs)

    def _sort(self) -> None:
        num_shared_blocks = MIN_SHARED_TOKENS // self.block_size
        seen: set[Any] = set()
        keys: dict[str, tuple[bool, int]] = {}
        for request in self.waiting:
            num_cached = self.kv_cache_manager.get_computed_blocks(request)[1]
            is_last = False
            if num_cached <= MIN_SHARED_TOKENS and len(request.block_hashes) >= num_shared_blocks:
                prefix = request.block_hashes[num_shared_blocks - 1]
                is_last = prefix in seen
                seen.add(prefix)
            keys[request.request_id] = (is_last, -num_cached)
        ordered = sorted(self.waiting, key=lambda request: keys[request.request_id])
        self.waiting.clear()
        self.waiting.extend(ordered)
