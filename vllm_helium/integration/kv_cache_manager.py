"""Hook ``trt-kv-cache-manager``: lookups, partial tails and plan uses around upstream's manager."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request, RequestStatus

from helium.protocol import EnginePlan
from vllm_helium.integration.engine_config import HOST_TIER
from vllm_helium.integration.host_tier_scheduler import HostTier, host_tier_options
from vllm_helium.integration.kv_cache_coordinator import TrtBlockPool, trt_coordinator
from vllm_helium.integration.kv_cache_manager_path import (
    PREWARM_ATTRIBUTE,
    known_path,
    namespace_of,
    request_path,
)
from vllm_helium.prefix_cache.index import NO_TAG
from vllm_helium.prefix_cache.miss_counts import ORDINARY, MissCounts, describe_match
from vllm_helium.prefix_cache.options import PrefixCacheOptions
from vllm_helium.prefix_cache.static_prefixes import StaticPrefix
from vllm_helium.tiering.options import HostTierOptions


class TrtKVCacheManager(KVCacheManager):
    """Upstream's manager over the templated radix tree.

    A lookup may end inside a block: upstream's copy path then gives the request a private copy.
    Where the configuration is not supported, every method behaves as upstream's and ``pool`` is
    ``None``.

    Attributes:
        pool: Our block pool, or ``None``.
        clock: Seconds, monotonic; leases and the age of evictions are measured with it.
        misses: Why lookups of admitted requests fell short.
        host_tier: What the host tier's connector asks, or ``None`` where there is no such tier.
    """

    def __init__(
        self,
        *args: Any,
        options: PrefixCacheOptions | None = None,
        unsupported: str | None = None,
        host_tier: Callable[[KVCacheConfig], HostTierOptions] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        self.coordinator_factory = functools.partial(
            trt_coordinator, options=options, unsupported=unsupported, host_tier=host_tier
        )
        super().__init__(*args, **kwargs)
        self.pool = self.block_pool if isinstance(self.block_pool, TrtBlockPool) else None
        # The one group's manager: which blocks a running request holds and has indexed.
        self._group = self.coordinator.single_type_managers[0] if self.pool is not None else None
        self.host_tier: HostTier | None = None
        if self.pool is not None and self.pool.host_tier_options.num_slots:
            self.host_tier = HostTier(
                self.pool,
                self.pool.host_tier_options,
                clock=lambda: self.clock(),
                num_running=lambda: len(self._group.req_to_blocks),
            )
        self.clock = clock
        self.misses = MissCounts()

    @property
    def needs_block_hashes(self) -> bool:
        """Whether requests must be hashed block by block: not for the tree."""
        return self.pool is None

    def new_step_starts(self) -> None:
        super().new_step_starts()
        if self.pool is not None:
            self.pool.index.advance(self.clock())

    # --- lookup ----------------------------------------------------------------------------------

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        pool = self.pool
        if pool is None:
            return super().get_computed_blocks(request)
        if not self.prefix_cache_lookup_enabled(request):
            return self.empty_kv_cache_blocks, 0, 0
        path = request_path(request, pool.hash_block_size, pool.plans)
        # The last token is always computed: its logits are what the request asks for.
        match = path.match = pool.index.match(
            path.namespace,
            path.tokens,
            request.num_tokens - 1,
            path.labels,
            path.plan,
            path.num_static_tokens,
        )
        hit = match.select(pool.blocks)
        return self.create_kv_cache_blocks((hit,)), match.num_tokens, 0

    def pending_tokens(self, request: Request) -> int:
        """Returns how many more tokens the next step's lookup would find than one in this step.

        Those are tokens that the step being scheduled computes for another request, inside a block.
        """
        pool = self.pool
        if pool is None or not self.prefix_cache_lookup_enabled(request):
            return 0
        path = request_path(request, pool.hash_block_size, pool.plans)
        match = pool.index.match(path.namespace, path.tokens, request.num_tokens - 1, path.labels)
        num_tokens: int = match.num_pending_tokens
        return num_tokens

    def record_prefix_cache_stats(self, request: Request, num_hits: int) -> None:
        """Called once per admission, when the request holds its slots."""
        super().record_prefix_cache_stats(request, num_hits)
        path = known_path(request) if self.pool is not None else None
        if path is None or path.match is None:
            return
        if not path.is_prewarm:
            operator = getattr(request, "helium_operator", ORDINARY)
            self.misses.record(path.match, request.num_tokens, operator)
            stats = request.prefill_stats
            if stats is not None and stats.helium is not None:
                stats.helium["prefix_cache"] = describe_match(path.match, request.num_tokens)
        path.match = None
        if num_hit_blocks := num_hits // self.pool.hash_block_size:
            blocks = self._group.req_to_blocks[request.request_id][:num_hit_blocks]
            self.pool.index.claim([block.block_id for block in blocks], path.segments)

    def estimate_cached_tokens(self, request: Request) -> int:
        if self.pool is None:
            return super().estimate_cached_tokens(request)
        group = self._group
        return group.num_cached_block.get(request.request_id, 0) * group.block_size

    # --- slots -----------------------------------------------------------------------------------

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Upstream's, but for the common decode step: it needs no block and fills none.

        Then upstream's method would find out with much arithmetic that there is nothing to do.
        """
        group = self._group
        if group is not None and needs_no_block(group, request, num_new_tokens, args, kwargs):
            return self.empty_kv_cache_blocks
        blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        if blocks is not None and self._group is not None:
            self._cache_prompt_tail(request, num_new_tokens, kwargs)
        return blocks

    def _cache_prompt_tail(
        self, request: Request, num_new_tokens: int, kwargs: dict[str, Any]
    ) -> None:
        """Indexes the last, partial block of a prompt in the step that computes its last token.

        Later steps may copy from it while the request goes on; this one may not, see ``match``.
        """
        pool = self.pool
        if (
            (num_new_tokens <= 1 and request.status == RequestStatus.RUNNING)  # it decodes
            or not pool.caches_prompt_tails
            or kwargs.get("delay_cache_blocks")
        ):
            return
        num_tokens = request.num_computed_tokens + num_new_tokens
        num_tokens += kwargs.get("num_new_computed_tokens", 0)
        num_tokens += kwargs.get("num_external_computed_tokens", 0)
        if num_tokens == request.num_tokens:
            pool.cache_tail(request, self._group.req_to_blocks[request.request_id], num_tokens)

    # --- end of a request ------------------------------------------------------------------------

    def free(self, request: Request) -> None:
        self._retire(request)
        super().free(request)

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        self._retire(request)
        return super().pop_blocks_for_free(request)

    def _retire(self, request: Request) -> None:
        """Keeps what a finished or preempted request has computed; counts a finished call down."""
        pool = self.pool
        if pool is None:
            return
        blocks = self._group.req_to_blocks.get(request.request_id)
        if blocks:
            num_computed_tokens = request.num_computed_tokens
            pool.drop_unwritten(blocks, num_computed_tokens)
            num_known_tokens = num_computed_tokens - request.num_output_placeholders
            pool.cache_tail(request, blocks, min(num_known_tokens, request.num_tokens))
        if request.is_finished():
            pool.plans.call_ended(getattr(request, "helium", None))

    # --- plans and leases ------------------------------------------------------------------------

    def register_plan(self, digest: str, plan: EnginePlan) -> None:
        """Tells the cache what the calls of a plan will read; see ``PlanUses``."""
        if self.pool is not None:
            self.pool.plans.register(digest, plan)

    def drop_plan(self, digest: str) -> None:
        """Forgets a plan; what only it used is evicted first."""
        if self.pool is not None:
            self.pool.plans.drop(digest)
            self.pool.leases.drop(digest)

    def finish_run(self, digest: str, run: str) -> None:
        """Ends a run whose remaining calls will not come."""
        if self.pool is not None:
            self.pool.plans.finish_run(digest, run)

    def lease_prefix(self, request: Request, num_tokens: int, lease_s: float) -> bool:
        """Leases the cached blocks of a request's first ``num_tokens`` tokens.

        Returns:
            Whether a lease stands; not where nothing is cached or the budget is too small.
        """
        if self.pool is None:
            return False
        self.pool.index.tell_time(self.clock())
        path = request_path(request, self.pool.hash_block_size, self.pool.plans)
        num_tokens = min(num_tokens, request.num_tokens)
        match = self.pool.index.match(path.namespace, path.tokens, num_tokens, path.labels)
        return self.pool.index.lease_blocks(match.blocks, lease_s) != NO_TAG

    @property
    def has_tree(self) -> bool:
        """Whether the templated radix tree is in use."""
        return self.pool is not None

    @property
    def num_lease_tokens(self) -> int:
        """Tokens whose KV may be leased at once, and has room now without preempting anything."""
        if self.pool is None:
            return 0
        num_blocks = min(self.pool.max_leased_blocks, self.pool.get_num_free_blocks())
        return num_blocks * self.pool.hash_block_size

    def lease_template(
        self, request: Request, digest: str, prefix: StaticPrefix, lease_s: float
    ) -> bool:
        """Leases a plan's static prefix, for requests of the given one's adapter and salt.

        Args:
            request: Has the prefix as its prompt.
            digest: The plan; the lease ends with it and with its last open run.
            lease_s: Seconds the lease lasts after its last use.

        Returns:
            Whether the request is to be run, because the prefix is not cached yet.
        """
        pool = self.pool
        if pool is None:
            return False
        pool.index.tell_time(self.clock())
        lease = pool.leases.of(digest, namespace_of(request))
        lease.extend(prefix, lease_s)
        setattr(request, PREWARM_ATTRIBUTE, (lease, prefix))
        path = request_path(request, pool.hash_block_size, pool.plans)
        match = pool.index.match(path.namespace, path.tokens, request.num_tokens, path.labels)
        if request.num_tokens - match.num_tokens >= pool.min_partial_tokens:
            return True
        num_full_blocks = request.num_tokens // pool.hash_block_size
        pool.index.claim(match.blocks[:num_full_blocks], path.segments)
        return False

    def describe(self) -> dict[str, Any]:
        """Counts for the status report."""
        if self.pool is None:
            return {"index": "upstream"}
        return {
            "index": "tree",
            **self.pool.index.stats(),
            **self.pool.plans.describe(),
            "num_template_leases": len(self.pool.leases),
            **(self.host_tier.describe() if self.host_tier is not None else {}),
            "miss_requests": dict(self.misses.num_requests),
            "miss_tokens": dict(self.misses.num_tokens),
            "miss_evicted_as": dict(self.misses.evicted_as),
        }


def needs_no_block(
    group: Any, request: Request, num_new_tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether allocating changes nothing: the slots are held, and no known block fills up.

    True only for running requests and the arguments the scheduler gives for those; anything else
    (hits, external tokens, reserved blocks, ...) is upstream's to judge.

    Args:
        group: Upstream's manager of the only group of layers, of full attention.
        args: Further positional arguments of ``allocate_slots``.
        kwargs: Its keyword arguments.
    """
    if args or num_new_tokens <= 0 or request.status != RequestStatus.RUNNING:
        return False
    num_tokens = request.num_computed_tokens + num_new_tokens
    num_slots_needed = num_tokens
    if kwargs:
        if len(kwargs) > 1 or "num_lookahead_tokens" not in kwargs:
            return False
        num_slots_needed += kwargs["num_lookahead_tokens"]
    request_id = request.request_id
    num_indexed_blocks = group.num_cached_block.get(request_id)
    if num_indexed_blocks is None:
        return False
    block_size = group.block_size
    if num_slots_needed > len(group.req_to_blocks[request_id]) * block_size:
        return False
    next_full = (num_indexed_blocks + 1) * block_size
    return num_tokens < next_full or request.num_tokens < next_full


def kv_cache_manager_factory(
    vllm_config: VllmConfig, options: PrefixCacheOptions | None
) -> Callable[..., KVCacheManager]:
    """What ``Scheduler.kv_cache_manager_cls`` should be for this engine.

    Args:
        options: ``None`` keeps upstream's index.
    """
    unsupported = None
    connector = getattr(vllm_config.kv_transfer_config, "kv_connector", None)
    if vllm_config.kv_transfer_config is not None and connector != HOST_TIER:
        unsupported = "a KV connector needs block hashes"
    elif vllm_config.speculative_config is not None:
        unsupported = "speculative decoding is on"
    host_tier = None
    if connector == HOST_TIER:
        host_tier = functools.partial(host_tier_options, vllm_config.helium_config)
    return functools.partial(
        TrtKVCacheManager, options=options, unsupported=unsupported, host_tier=host_tier
    )
