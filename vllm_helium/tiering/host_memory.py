"""The copies of the host tier on one worker."""

from __future__ import annotations

from vllm_helium.kernels.kv_blocks import KVBlocks
from vllm_helium.kernels.mover import BlockMover, Transfer, empty_host_blocks
from vllm_helium.tiering.moves import StepMoves


class HostMemory:
    """Slots of host memory beside a worker's KV cache.

    Everything is ordered by streams: a store runs after the step before and ahead of what
    overwrites its blocks, a load ahead of the forward pass that reads it, a prefetch beside the
    forward pass and ahead of the next step.

    Args:
        kv: The worker's cache.
        num_slots: Blocks the memory holds; pinned where the cache is on a GPU.

    Raises:
        KernelError: The memory cannot be pinned.
    """

    def __init__(self, kv: KVBlocks, num_slots: int) -> None:
        self._memory = empty_host_blocks(kv, num_slots)
        self._mover = BlockMover(kv)
        # A stream of its own, so that no load waits for a prefetch's bytes before it.
        self._prefetcher = BlockMover(kv) if kv.device.type == "cuda" else self._mover
        self._prefetch: Transfer | None = None

    def begin_step(self, moves: StepMoves) -> None:
        """Stores what the step will overwrite; starts the prefetch. Before any block is written."""
        if self._prefetch is not None:
            self._prefetch.wait_on()
            self._prefetch = None
        blocks, slots = moves.stores
        if blocks:
            self._mover.store(blocks, self._memory, slots).wait_on()
        blocks, slots = moves.prefetches
        if blocks:
            self._prefetch = self._prefetcher.load(self._memory, slots, blocks)

    def load(self, moves: StepMoves) -> None:
        """Loads what the step's forward pass reads; before it, after all zeroing and copying."""
        blocks, slots = moves.loads
        if blocks:
            self._load_rows(blocks, slots)

    def _load_rows(self, blocks: list[int], slots: list[int]) -> None:
        # One slot may go to several blocks, which the mover takes as several batches.
        while blocks:
            seen: set[int] = set()
            batch, rest = [], []
            for block, slot in zip(blocks, slots, strict=True):
                (rest if slot in seen else batch).append((block, slot))
                seen.add(slot)
            now, rows = [block for block, _ in batch], [slot for _, slot in batch]
            self._mover.load(self._memory, rows, now).wait_on()
            blocks, slots = [block for block, _ in rest], [slot for _, slot in rest]
