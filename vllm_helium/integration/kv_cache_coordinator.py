"""Hook ``trt-kv-cache-coordinator``: a block pool that is indexed by the radix tree.

The coordinator itself is upstream's for one KV cache group; only the pool below it is ours.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_coordinator import (
    KVCacheCoordinator,
    UnitaryKVCacheCoordinator,
    get_kv_cache_coordinator,
)
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig
from vllm.v1.request import Request

from vllm_helium.integration.kv_cache_manager_path import request_path
from vllm_helium.prefix_cache.free_queue import IndexedFreeQueue
from vllm_helium.prefix_cache.index import NO_BLOCK, PrefixIndex
from vllm_helium.prefix_cache.options import PrefixCacheOptions
from vllm_helium.prefix_cache.plan_uses import PlanUsesRegistry
from vllm_helium.prefix_cache.template_leases import TemplateLeases
from vllm_helium.tiering.options import HostTierOptions

logger = init_logger(__name__)


class TrtBlockPool(BlockPool):
    """Upstream's pool with the prefix index in place of the hash map and the free list.

    Reference counts stay on upstream's blocks; which blocks are free, what they cache and in which
    order they are given up is the index's. ``block_hash`` of a block is always ``None``.
    """

    def __init__(
        self,
        *args: Any,
        options: PrefixCacheOptions,
        host_tier: HostTierOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.host_tier_options = host_tier or HostTierOptions()
        block_size = self.hash_block_size
        num_blocks = self.num_gpu_blocks
        self.min_partial_tokens = options.min_partial_tokens or block_size + 1
        self.caches_prompt_tails = options.prompt_tails
        self.max_leased_blocks = int(options.lease_share * num_blocks)
        self.index = PrefixIndex(
            num_blocks,
            block_size,
            min_partial_tokens=self.min_partial_tokens,
            max_leased_blocks=self.max_leased_blocks,
            max_protected_blocks=int((1 - options.ordinary_share) * num_blocks),
            num_slots=self.host_tier_options.num_slots,
        )
        plan_ids = itertools.count()
        self.leases = TemplateLeases(self.index, plan_ids, options.max_runs)
        self.plans = PlanUsesRegistry(
            self.index, options.max_runs, plan_ids, on_last_run=self.leases.drop
        )
        [null_block_id] = self.index.evict(1)
        assert null_block_id == self.null_block.block_id, "the null block must be the first"
        self.free_block_queue = IndexedFreeQueue(self.index, self.blocks)

    @property
    def num_evicted_blocks(self) -> int:
        """Cached blocks given up to make room, since the pool was made."""
        return sum(self.index.stats()["evicted"].values())

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        if num_blocks > self.index.num_free:
            raise ValueError(f"Cannot get {num_blocks} free blocks from the pool")
        blocks: list[KVCacheBlock] = self.index.evict_from(self.blocks, num_blocks)
        if self._reuse_watchers:
            self._notify_reuse(blocks)
        metrics = self.metrics_collector
        for block in blocks:
            assert block.ref_cnt == 0, "a free block has a reference"
            block.ref_cnt = 1
            if metrics:
                metrics.on_block_evicted(block)
                metrics.on_block_allocated(block)
        return blocks

    def get_num_free_blocks(self) -> int:
        num_free: int = self.index.num_free
        return num_free

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        free = [block.block_id for block in blocks if block.ref_cnt == 0 and not block.is_null]
        if free:
            self.index.acquire(free)
        for block in blocks:
            block.ref_cnt += 1
            if self.metrics_collector:
                self.metrics_collector.on_block_accessed(block)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0 and not block.is_null:
                freed.append(block.block_id)
        if freed:
            self.index.release(freed)

    def cache_full_blocks(
        self,
        request: Request,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        assert block_mask is None and kv_cache_group_id == 0, "one dense group is supported"
        if num_cached_blocks >= num_full_blocks:
            return
        path = request_path(request, block_size, self.plans)
        # The end of the prompt may be known as a partial block, which answers have filled since.
        self.index.forget_partial(blocks[num_cached_blocks].block_id)
        self.index.insert(
            blocks[num_cached_blocks - 1].block_id if num_cached_blocks else NO_BLOCK,
            path.namespace,
            path.tokens,
            num_full_blocks * block_size,
            num_cached_blocks,
            [block.block_id for block in blocks[num_cached_blocks:num_full_blocks]],
            path.labels,
            path.segments,
        )

    def cache_tail(self, request: Request, blocks: list[KVCacheBlock], num_tokens: int) -> None:
        """Indexes the last, partial block of a request whose prompt is computed, or that ends.

        Args:
            blocks: The request's blocks.
            num_tokens: Leading tokens whose KV is written by a step that was submitted, or by the
                one that is being scheduled.
        """
        block_size = self.hash_block_size
        index, rest = divmod(num_tokens, block_size)
        if rest < self.min_partial_tokens or index >= len(blocks):
            return
        path = request_path(request, block_size, self.plans)
        block_id = blocks[index].block_id
        parent = blocks[index - 1].block_id if index else NO_BLOCK
        if path.has_label(index) or self.index.is_indexed(block_id):
            return
        start = index * block_size
        if self.index.covers(parent, path.namespace, path.tokens, start, rest):
            return
        self.index.insert(
            parent, path.namespace, path.tokens, num_tokens, index, [block_id], [], path.segments
        )

    def drop_unwritten(self, blocks: list[KVCacheBlock], num_computed_tokens: int) -> None:
        """Removes blocks from the index that no submitted step has written or will write.

        A request may be preempted by the very step that allocated and indexed its blocks.
        """
        for block in blocks[num_computed_tokens // self.hash_block_size :]:
            self.index.forget(block.block_id)

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> list[Any]:
        self.index.forget(block.block_id)
        return []

    def reset_prefix_cache(self) -> bool:
        if not super().reset_prefix_cache():
            return False
        self.index.reset()
        return True


class TrtCoordinator(UnitaryKVCacheCoordinator):
    """Upstream's coordinator for one group, over our pool."""

    def __init__(
        self, *, options: PrefixCacheOptions, host_tier: HostTierOptions | None, **kwargs: Any
    ) -> None:
        self.block_pool_cls = functools.partial(TrtBlockPool, options=options, host_tier=host_tier)
        super().__init__(**kwargs)


def trt_coordinator(
    *,
    options: PrefixCacheOptions | None,
    unsupported: str | None,
    host_tier: Callable[[KVCacheConfig], HostTierOptions] | None = None,
    **kwargs: Any,
) -> KVCacheCoordinator:
    """Builds our coordinator, or upstream's where this configuration is not ours to serve.

    Args:
        options: ``None`` asks for upstream's.
        unsupported: Why the engine as a whole cannot use ours, or ``None``.
        host_tier: Tells the host tier's options for a KV cache; ``None`` for no host tier.
    """
    if options is None or not kwargs["enable_caching"]:
        return get_kv_cache_coordinator(**kwargs)
    reason = unsupported or _unsupported(**kwargs)
    if reason is None:
        tier = host_tier(kwargs["kv_cache_config"]) if host_tier is not None else None
        return TrtCoordinator(options=options, host_tier=tier, **kwargs)
    logger.info_once("Helium: upstream's prefix cache stays in place: %s.", reason)
    return get_kv_cache_coordinator(**kwargs)


def _unsupported(
    *,
    kv_cache_config: KVCacheConfig,
    use_eagle: bool,
    enable_kv_cache_events: bool,
    dcp_world_size: int,
    pcp_world_size: int,
    scheduler_block_size: int,
    hash_block_size: int,
    num_prefill_lookahead: int = 0,
    **_: Any,
) -> str | None:
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return f"the model has {len(groups)} KV cache groups"
    spec = groups[0].kv_cache_spec
    if type(spec) is not FullAttentionSpec:
        return f"its KV cache is a {type(spec).__name__}"
    if spec.non_causal:
        return "its attention is not causal"
    if use_eagle or num_prefill_lookahead > 1:
        return "speculative decoding looks ahead of the prefill"
    if enable_kv_cache_events:
        return "KV cache events need block hashes"
    if dcp_world_size > 1 or pcp_world_size > 1:
        return "context parallelism splits the blocks"
    if not hash_block_size == scheduler_block_size == spec.block_size:
        return "scheduler, hashes and cache use different block sizes"
    return None
