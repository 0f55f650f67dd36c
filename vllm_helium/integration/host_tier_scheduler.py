"""The host tier beside the KV cache manager: who loads what, and what comes back ahead of use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from vllm_helium.integration.kv_cache_manager_path import RequestPath, known_path
from vllm_helium.prefix_cache.index import Match
from vllm_helium.tiering.costs import StepCosts
from vllm_helium.tiering.figures import TierFigures
from vllm_helium.tiering.moves import StepMoves
from vllm_helium.tiering.options import HostTierOptions
from vllm_helium.tiering.prefetch import Prefetcher, WaitingPrefix

if TYPE_CHECKING:
    from vllm_helium.integration.kv_cache_coordinator import TrtBlockPool

MAX_WAITS = 8
"""Steps a request waits for its loads to fit a step; then they are made at once. Long enough to
prefetch eight steps' worth, short beside the steps that computing the prefix would take."""


class HostTier:
    """What vLLM's scheduler asks of the host tier, answered from the tree.

    Args:
        pool: The block pool, whose index knows both tiers.
        clock: Seconds, monotonic; steps are timed with it.
        num_running: Tells how many requests hold blocks.
    """

    def __init__(
        self,
        pool: TrtBlockPool,
        options: HostTierOptions,
        *,
        clock: Callable[[], float],
        num_running: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._options = options
        self._clock = clock
        self._num_running = num_running
        self._prefetcher = Prefetcher(pool.index, options.max_step_blocks)
        self._num_loaded = 0
        # Requests of this step that wait for their blocks to come back, the next one first.
        self._awaited: list[RequestPath] = []
        self._num_promised = 0  # free blocks kept for them until the step's end
        self.costs = StepCosts(options.load_s)
        self.figures = TierFigures()

    def num_loadable_tokens(self, request: Request, num_device_tokens: int) -> int | None:
        """Tokens to load behind the device's, or ``None`` where the request had better wait.

        Args:
            num_device_tokens: What the device has, a multiple of the block size.
        """
        path = known_path(request)
        match = path.match if path is not None else None
        if match is None:
            return 0
        if self._num_promised and self._takes_promised(request, match):
            self.figures.num_deferrals += 1
            return None
        num_slots = len(match.slots)
        size = self._pool.hash_block_size
        if match.num_tokens // size * size != num_device_tokens:
            return 0
        if num_slots < self._options.min_load_blocks:
            return 0
        if not self.costs.is_load_cheaper(num_slots, match.num_host_tokens):
            self.figures.num_recomputed_blocks += num_slots
            return 0
        if self._must_wait(request, path, num_slots):
            return None
        self._pool.index.lock_slots(match.slots)
        return int(match.num_host_tokens)

    def _must_wait(self, request: Request, path: RequestPath, num_slots: int) -> bool:
        """Whether the request had better wait for a step.

        Either its load would hold running requests up for longer than one step may, or its blocks
        come in beside the step that runs meanwhile, at less cost than all of them waiting for it.
        They come only into blocks that it can have in the next step, and nobody else is admitted
        into those before; else running requests would take them again while it waits for room.
        """
        if path.num_waits >= MAX_WAITS or self._is_idle():
            return False
        is_long = self._num_loaded + num_slots > self._options.max_step_blocks
        can_prefetch = self._options.has_prefetch and self._has_room(request, path.match)
        if not is_long and not (
            can_prefetch
            and path.num_waits == 0
            and self.costs.is_wait_cheaper(
                num_slots, self._num_running(), 1 + self.figures.deferrals_per_wait
            )
        ):
            return False
        path.num_waits += 1
        self.figures.num_waits += 1
        if can_prefetch:
            self._awaited.append(path)
            self._num_promised += self._num_needed(request, path.match)
        return True

    def _has_room(self, request: Request, match: Match) -> bool:
        """Whether the request fits beside those promised room, and a step's growth of all."""
        num_free = self._pool.index.num_free - self._num_promised - self._num_running()
        return self._num_needed(request, match) <= num_free

    def _takes_promised(self, request: Request, match: Match) -> bool:
        """Whether admitting the request is possible only at the cost of one that waits."""
        is_possible = self._num_needed(request, match) <= self._pool.index.num_free
        return is_possible and not self._has_room(request, match)

    def _num_needed(self, request: Request, match: Match) -> int:
        """Free blocks that admitting a request takes: all but what others hold already."""
        size, blocks = self._pool.hash_block_size, self._pool.blocks
        num_held = sum(
            blocks[block].ref_cnt > 0 for block in match.blocks[: match.num_tokens // size]
        )
        return -(-request.num_tokens // size) - num_held

    def _is_idle(self) -> bool:
        """Whether no request holds a block; the null block is always held."""
        return self._pool.index.num_free >= self._pool.num_gpu_blocks - 1

    def load(self, request: Request, block_ids: list[int], num_tokens: int) -> None:
        """Asks for a request's loads; its blocks are its own by now."""
        path = known_path(request)
        assert path is not None and path.match is not None, "only a lookup finds tokens to load"
        size = self._pool.hash_block_size
        first = path.match.num_tokens // size
        slots = path.match.slots[: -(-num_tokens // size)]
        self._pool.index.load(block_ids[first : first + len(slots)], slots)
        self._num_loaded += len(slots)
        self.figures.saved_s += self.costs.saved_s(len(slots), num_tokens)

    def step_scheduled(self, num_scheduled_tokens: dict[str, int]) -> None:
        """Notes what a step computes, by request; its time is learnt with the next one."""
        counts = num_scheduled_tokens.values()
        self.costs.step_scheduled(
            self._clock(), sum(counts), sum(count for count in counts if count > 1)
        )

    def take_moves(self) -> StepMoves:
        """Ends a step's scheduling: adds prefetches, hands over all moves."""
        if self._awaited:
            waiting = [
                WaitingPrefix(path.namespace, path.tokens, path.labels) for path in self._awaited
            ]
            self._prefetcher.run(waiting, self._num_loaded)
        self._awaited.clear()
        self._num_loaded = self._num_promised = 0
        moves = StepMoves(*self._pool.index.take_moves())
        num_beyond_staging = len(moves.stores[0]) - self._options.num_staged_blocks
        self.figures.num_waited_blocks += len(moves.loads[0]) + max(0, num_beyond_staging)
        return moves

    def describe(self) -> dict[str, Any]:
        """Counts and estimates for the status report."""
        index = self._pool.index.stats()["host"]
        return {"host_tier": self.figures.describe(index, self._options.block_bytes)}


def host_tier_options(helium_config: Any, kv_cache_config: KVCacheConfig) -> HostTierOptions:
    """Returns the host tier of an engine; without slots where it is off or not supported."""
    if helium_config is None or not helium_config.host_gib:
        return HostTierOptions()
    if len(kv_cache_config.kv_cache_groups) != 1:
        return HostTierOptions()
    return HostTierOptions.of_sizes(
        helium_config.host_gib * 2**30,
        helium_config.host_step_mib * 2**20,
        block_bytes(kv_cache_config),
        min_load_blocks=helium_config.host_min_load_blocks,
        link_bytes_per_s=helium_config.host_link_gbps * 1e9,
        has_prefetch=helium_config.host_prefetch,
    )


def block_bytes(kv_cache_config: KVCacheConfig) -> int:
    """Bytes of one block over all layers of the first group, on one worker."""
    group = kv_cache_config.kv_cache_groups[0]
    return int(group.kv_cache_spec.page_size_bytes) * len(group.layer_names)
