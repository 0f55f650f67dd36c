"""Carries the host tier's moves from the scheduler to the workers, as a KV connector of vLLM's.

vLLM's scheduler asks a connector which tokens it holds beyond the device's, gives the request
blocks for them, and hands the connector's metadata to the workers with the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger

from vllm_helium.kernels.vllm_caches import describe_vllm_caches
from vllm_helium.tiering.host_memory import HostMemory
from vllm_helium.tiering.moves import StepMoves

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    from vllm_helium.integration.host_tier_scheduler import HostTier

logger = init_logger(__name__)


class HostTierMetadata(KVConnectorMetadata):
    """Moves of one step."""

    def __init__(self, moves: StepMoves) -> None:
        self.moves = moves
        self.is_begun = False  # on this worker


class HeliumHostTier(KVConnectorBase_V1, SupportsHMA):
    """The host tier's two ends.

    It only ever holds copies of blocks that were on this engine's device, so a lost store is a miss
    and nothing waits for it.
    """

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def __init__(
        self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._cache_config = kv_cache_config
        self._num_slots = host_slots(vllm_config, kv_cache_config)
        self._memory: HostMemory | None = None
        self._tier: HostTier | None = None

    # --- worker ----------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._num_slots:
            kv = describe_vllm_caches(kv_caches, self._cache_config)
            self._memory = HostMemory(kv, self._num_slots)
            logger.info(
                "Helium: %d blocks of host memory, %.2f GiB, hold what the device evicts.",
                self._num_slots,
                self._num_slots * kv.staged_block_bytes / 2**30,
            )

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called before a step writes any block; maybe twice, see ``before_block_writes``."""
        metadata = kv_connector_metadata
        assert isinstance(metadata, HostTierMetadata)
        if self._memory is not None and not metadata.is_begun:
            metadata.is_begun = True
            self._memory.begin_step(metadata.moves)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, HostTierMetadata)
        if self._memory is not None:
            self._memory.load(metadata.moves)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are ordered before the whole forward pass."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Blocks are stored when they are evicted, not when they are written."""

    def wait_for_save(self) -> None:
        """See ``save_kv_layer``."""

    def shutdown(self) -> None:
        self._memory = None

    # --- scheduler -------------------------------------------------------------------------------

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        self._tier = getattr(kv_cache_manager, "host_tier", None)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._tier is None:
            return 0, False
        return self._tier.num_loadable_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self._tier is not None and num_external_tokens:
            self._tier.load(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        if self._tier is None:
            return HostTierMetadata(StepMoves())
        self._tier.step_scheduled(scheduler_output.num_scheduled_tokens)
        return HostTierMetadata(self._tier.take_moves())

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:
        return False, None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        return False, None

    def reset_cache(self) -> bool:
        """The tree forgets both tiers at once; there is nothing else."""
        return True


def host_slots(vllm_config: Any, kv_cache_config: KVCacheConfig) -> int:
    """Blocks that one worker's host memory holds; the same on scheduler and workers."""
    from vllm_helium.integration.host_tier_scheduler import host_tier_options

    return host_tier_options(vllm_config.helium_config, kv_cache_config).num_slots
