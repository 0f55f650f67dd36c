"""Counts the cached blocks an engine gives up to make room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def count_evictions(scheduler: Any) -> Callable[[], int]:
    """Returns a function that tells the evictions from now on.

    A pool says itself (``num_evicted_blocks``), or its choke point for evictions is watched.
    """
    pool = scheduler.kv_cache_manager.block_pool
    if hasattr(pool, "num_evicted_blocks"):
        return lambda: int(pool.num_evicted_blocks)
    evict = pool._maybe_evict_cached_block
    count = 0

    def counted(block: Any) -> bool:
        nonlocal count
        is_evicted = bool(evict(block))
        count += is_evicted
        return is_evicted

    pool._maybe_evict_cached_block = counted
    return lambda: count
