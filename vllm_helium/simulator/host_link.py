"""The link between device and host memory in virtual time: this fork's host tier, and vLLM's own.

Each direction has the device's link bandwidth to itself. What the engine's connector asks for is
charged as the workers do it:

- this fork's: a step gathers what it stores into device memory, loads, then computes; what was
  gathered goes to the host beside it, as prefetches come in, which are done before the next step
  begins. More than fits the staging memory holds the step up for as long as the link takes;
- vLLM's simple CPU offload: stores and loads run beside the steps; a request waits until its load
  is reported with the first step that ends after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.simple_kv_offload.metadata import (
    INVALID_JOB_ID,
    SimpleCPUOffloadMetadata,
    SimpleCPUOffloadWorkerMetadata,
)

from vllm_helium.integration.host_tier_connector import HostTierMetadata
from vllm_helium.tiering.options import STORE_STAGING_BYTES


@dataclass(slots=True)
class LinkFigures:
    """Blocks moved, and what it cost.

    Attributes:
        num_stored_blocks: Device to host.
        num_loaded_blocks: Host to device, for a request that reads them at once.
        num_prefetched_blocks: Host to device ahead of any request.
        busy_s: Seconds in which bytes moved, directions added up.
        delay_s: Seconds by which steps took longer.
    """

    num_stored_blocks: int = 0
    num_loaded_blocks: int = 0
    num_prefetched_blocks: int = 0
    busy_s: float = 0.0
    delay_s: float = 0.0

    @property
    def overlap_ratio(self) -> float:
        """Share of the transfer time that delayed no step."""
        return 1 - self.delay_s / self.busy_s if self.busy_s else 1.0


@dataclass
class HostLink:
    """Charges one engine's transfers.

    Attributes:
        bytes_per_s: Of each direction.
        block_bytes: One block of all layers.
        copy_bytes_per_s: Bytes the device reads or writes in its own memory.
    """

    bytes_per_s: float
    block_bytes: int
    copy_bytes_per_s: float = 2.5e12
    figures: LinkFigures = field(default_factory=LinkFigures)
    _to_host_free_s: float = 0.0
    _to_device_free_s: float = 0.0
    _prefetched_s: float = 0.0
    _pending: list[tuple[float, set[str], int | None]] = field(default_factory=list)

    def _seconds(self, num_blocks: int) -> float:
        seconds = num_blocks * self.block_bytes / self.bytes_per_s
        self.figures.busy_s += seconds
        return seconds

    def start_step(self, metadata: Any, start_s: float) -> float:
        """Starts a step's transfers; returns when the step's computing can begin.

        Args:
            metadata: The scheduler's for its KV connector.
            start_s: When the device is free.
        """
        if isinstance(metadata, HostTierMetadata):
            return self._start_ours(metadata, start_s)
        if isinstance(metadata, SimpleCPUOffloadMetadata):
            self._start_upstreams(metadata, start_s)
        return start_s

    def _start_ours(self, metadata: HostTierMetadata, start_s: float) -> float:
        moves, figures = metadata.moves, self.figures
        begin_s = max(start_s, self._prefetched_s)
        gathered_s = self._store(len(moves.stores[0]), begin_s)
        loaded_s = gathered_s
        if moves.loads[0]:
            is_stored = bool(set(moves.loads[1]) & set(moves.stores[1]))
            loaded_s = max(loaded_s, self._to_host_free_s if is_stored else 0.0)
            loaded_s += self._seconds(len(moves.loads[0]))
        if moves.prefetches[0]:
            is_stored = bool(set(moves.prefetches[1]) & set(moves.stores[1]))
            from_s = max(loaded_s, self._to_host_free_s if is_stored else 0.0)
            self._prefetched_s = from_s + self._seconds(len(moves.prefetches[0]))
        figures.num_stored_blocks += len(moves.stores[0])
        figures.num_loaded_blocks += len(moves.loads[0])
        figures.num_prefetched_blocks += len(moves.prefetches[0])
        figures.delay_s += loaded_s - start_s
        return loaded_s

    def _store(self, num_blocks: int, begin_s: float) -> float:
        """Returns when the blocks of a step's stores may be overwritten."""
        if not num_blocks:
            return begin_s
        # The staging memory is one, and its last content may be on its way yet.
        gathered_s = max(begin_s, self._to_host_free_s)
        gathered_s += 2 * num_blocks * self.block_bytes / self.copy_bytes_per_s
        num_staged = min(num_blocks, max(1, STORE_STAGING_BYTES // self.block_bytes))
        gathered_s += self._seconds(num_blocks - num_staged)
        self._to_host_free_s = gathered_s + self._seconds(num_staged)
        return gathered_s

    def _start_upstreams(self, metadata: SimpleCPUOffloadMetadata, start_s: float) -> None:
        if metadata.store_event != INVALID_JOB_ID:
            num_blocks = len(metadata.store_gpu_blocks)
            begin_s = max(self._to_host_free_s, start_s)
            self._to_host_free_s = begin_s + self._seconds(num_blocks)
            self.figures.num_stored_blocks += num_blocks
            self._pending.append((self._to_host_free_s, set(), metadata.store_event))
        if metadata.load_event != INVALID_JOB_ID:
            num_blocks = len(metadata.load_gpu_blocks)
            begin_s = max(self._to_device_free_s, start_s)
            self._to_device_free_s = begin_s + self._seconds(num_blocks)
            self.figures.num_loaded_blocks += num_blocks
            requests = set(metadata.load_event_to_reqs.get(metadata.load_event, ()))
            self._pending.append((self._to_device_free_s, requests, None))

    def next_report_s(self) -> float | None:
        """Returns when the next transfer that somebody waits for is over."""
        return min((end_s for end_s, *_ in self._pending), default=None)

    def report(self, now_s: float) -> KVConnectorOutput | None:
        """Returns what is over by now, as vLLM's workers report it."""
        over = [entry for entry in self._pending if entry[0] <= now_s]
        if not over:
            return None
        self._pending = [entry for entry in self._pending if entry[0] > now_s]
        stores = {event: 1 for _, _, event in over if event is not None}
        return KVConnectorOutput(
            finished_recving=set().union(*(requests for _, requests, _ in over)),
            kv_connector_worker_meta=SimpleCPUOffloadWorkerMetadata(stores) if stores else None,
        )
