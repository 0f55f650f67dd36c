"""Makes an engine's decode steps cheaper to simulate, without changing what they do.

Nearly all of a simulation's time is spent in upstream's scheduler, most of it on requests that
decode: each step asks the KV manager for a slot that the request holds already and to index a
block that is not full yet, and describes every request for workers that are not there. The first
two are seen in advance here, and answered as upstream's methods would; the last is left out.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request

from vllm_helium.integration.kv_cache_manager import needs_no_block


def shorten_decode_steps(scheduler: Any) -> None:
    """Shortens the steps of a scheduler and of its KV manager, in place.

    A manager of anything but one group of full attention is left as it is, and a KV connector,
    which may read what workers are told, gets all of it.
    """
    if scheduler.connector is None:
        scheduler._make_cached_request_data = _nothing_cached
    kv_cache_manager = scheduler.kv_cache_manager
    coordinator = kv_cache_manager.coordinator
    groups = coordinator.single_type_managers
    if len(groups) != 1 or type(groups[0]) is not FullAttentionManager:
        return
    if coordinator.num_reprefillable_tokens or not kv_cache_manager.enable_caching:
        return
    [group] = groups
    block_size, num_cached_blocks = group.block_size, group.num_cached_block
    nothing = kv_cache_manager.empty_kv_cache_blocks
    allocate, cache = kv_cache_manager.allocate_slots, kv_cache_manager.cache_blocks

    def allocate_slots(request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        if needs_no_block(group, request, num_new_tokens, args, kwargs):
            return nothing
        return allocate(request, num_new_tokens, *args, **kwargs)

    def cache_blocks(request: Request, num_computed_tokens: int) -> None:
        num_cached = num_cached_blocks.get(request.request_id, 0)
        if num_computed_tokens >= (num_cached + 1) * block_size:
            cache(request, num_computed_tokens)

    kv_cache_manager.allocate_slots = allocate_slots
    kv_cache_manager.cache_blocks = cache_blocks


def _nothing_cached(*args: Any, **kwargs: Any) -> CachedRequestData:
    return CachedRequestData.make_empty()
