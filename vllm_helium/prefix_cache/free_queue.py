"""The prefix index behind the interface of upstream's free block queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm_helium.prefix_cache.index import PrefixIndex


class IndexedFreeQueue:
    """Free blocks in the index's order of eviction.

    Same methods as upstream's ``FreeKVCacheBlockQueue``, for callers other than our block pool.
    Where a block goes is up to the index: ``append`` and ``prepend`` differ only among blocks that
    hold nothing. A block that is handed out is no longer indexed.
    """

    def __init__(self, index: PrefixIndex, blocks: Sequence[Any]) -> None:
        self._index = index
        self._blocks = blocks

    @property
    def num_free_blocks(self) -> int:
        return self._index.num_free

    def popleft(self) -> Any:
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[Any]:
        blocks = self._blocks
        return [blocks[block_id] for block_id in self._index.evict(n)]

    def remove(self, block: Any) -> None:
        self._index.acquire([block.block_id])

    def append(self, block: Any) -> None:
        self._index.release([block.block_id])

    def append_n(self, blocks: Iterable[Any]) -> None:
        self._index.release([block.block_id for block in blocks])

    def prepend_n(self, blocks: Iterable[Any]) -> None:
        self._index.release([block.block_id for block in blocks])

    def get_all_free_blocks(self) -> list[Any]:
        return [self._blocks[block_id] for block_id in self._index.free_blocks()]

    def iter_blocks_after(self, cursor: Any | None) -> Iterator[Any]:
        """Yields the free blocks behind ``cursor`` in today's order; O(free blocks)."""
        blocks = iter(self.get_all_free_blocks())
        if cursor is not None:
            for block in blocks:
                if block is cursor:
                    break
        yield from blocks
