"""The copies of the host tier on one worker."""

from __future__ import annotations

from vllm_helium.kernels.kv_blocks import KVBlocks
from vllm_helium.kernels.mover import BlockMover, Transfer, empty_host_blocks
from vllm_helium.tiering.moves import StepMoves
from vllm_helium.tiering.options import STORE_STAGING_BYTES


class HostMemory:
    """Slots of host memory beside a worker's KV cache.

    Everything is ordered by streams. A store reads its blocks after the step before and ahead of
    what overwrites them; where they were gathered into device memory, their way to the host runs
    beside the step. A load is over ahead of the forward pass that reads it, a prefetch runs beside
    the forward pass and is over ahead of the next step. Whatever reads a slot waits for the last
    store.

    Args:
        kv: The worker's cache.
        num_slots: Blocks the memory holds; pinned where the cache is on a GPU.

    Raises:
        KernelError: The memory cannot be pinned.
    """

    def __init__(self, kv: KVBlocks, num_slots: int) -> None:
        self._memory = empty_host_blocks(kv, num_slots)
        self._storer = self._loader = self._prefetcher = BlockMover(
            kv, staging_bytes=STORE_STAGING_BYTES
        )
        if kv.device.type == "cuda":
            # Streams of their own: no load waits for the bytes of other transfers before it.
            self._loader, self._prefetcher = BlockMover(kv), BlockMover(kv)
        self._prefetch: Transfer | None = None
        self._stores: list[tuple[Transfer, set[int]]] = []  # the last ones and their slots

    def begin_step(self, moves: StepMoves) -> None:
        """Stores what the step will overwrite; starts the prefetch. Before any block is written."""
        if self._prefetch is not None:
            self._prefetch.wait_on()
            self._prefetch = None
        blocks, slots = moves.stores
        self._stores = [(store, to) for store, to in self._stores if not store.done()]
        if blocks:
            store = self._storer.store(blocks, self._memory, slots)
            store.wait_until_read()
            self._stores.append((store, set(slots)))
        blocks, slots = moves.prefetches
        if blocks:
            self._wait_for_stores(self._prefetcher, slots)
            self._prefetch = self._prefetcher.load(self._memory, slots, blocks)

    def load(self, moves: StepMoves) -> None:
        """Loads what the step's forward pass reads; before it, after all zeroing and copying."""
        blocks, slots = moves.loads
        if blocks:
            self._wait_for_stores(self._loader, slots)
            self._load_rows(blocks, slots)

    def _wait_for_stores(self, mover: BlockMover, slots: list[int]) -> None:
        """Keeps a transfer from reading slots whose bytes are still on their way."""
        for store, stored in self._stores:
            if not stored.isdisjoint(slots):
                mover.wait_for(store)

    def _load_rows(self, blocks: list[int], slots: list[int]) -> None:
        # One slot may go to several blocks, which the mover takes as several batches.
        while blocks:
            seen: set[int] = set()
            batch, rest = [], []
            for block, slot in zip(blocks, slots, strict=True):
                (rest if slot in seen else batch).append((block, slot))
                seen.add(slot)
            now, rows = [block for block, _ in batch], [slot for _, slot in batch]
            self._loader.load(self._memory, rows, now).wait_on()
            blocks, slots = [block for block, _ in rest], [slot for _, slot in rest]
