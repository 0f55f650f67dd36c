"""A queue worked off by as few tasks as its work needs at once.

A task per item would cost more than most items do. Here a task takes one item after the other; the
next task is started only when there is an item nobody has taken, so work that never waits is done
by a handful of tasks, and work that waits has one task per item under way.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")

_BURST = 64
"""Items a task may do without a pause, so that other tasks of the loop get their turn."""


class Lane(Generic[_T]):
    """Runs ``work`` on items, smallest priority first, then first come first served.

    An item under way is cancelled by cancelling the task its ``work`` runs in; the task then goes
    on with the next item. ``work`` must raise nothing else. Nothing runs while there are no items.
    """

    def __init__(self, work: Callable[[_T], Awaitable[None]], max_open: int) -> None:
        """Opens an empty lane.

        Args:
            max_open: Items under way at most.
        """
        self._work = work
        self._max_open = max_open
        self._waiting: list[tuple[int, int, _T]] = []
        self._num_put = 0
        self._num_open = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._is_starting = False
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Items nobody has taken."""
        return len(self._waiting)

    @property
    def num_open(self) -> int:
        """Items under way."""
        return self._num_open

    @property
    def num_free(self) -> int:
        """Items more that could be under way."""
        return self._max_open - self._num_open

    def take_last(self, count: int) -> list[_T]:
        """Takes out up to ``count`` waiting items, those that would be worked on last."""
        keep = max(0, len(self._waiting) - count)
        in_order = sorted(self._waiting, key=lambda entry: entry[:2])
        self._waiting = in_order[:keep]  # a sorted list is a heap
        return [item for _, _, item in in_order[keep:]]

    def put(self, item: _T, priority: int = 0) -> None:
        """Queues an item; needs a running event loop."""
        heapq.heappush(self._waiting, (priority, self._num_put, item))
        self._num_put += 1
        self._wake()

    async def close(self) -> None:
        """Drops what waits and cancels what is under way."""
        self._is_closed = True
        self._waiting.clear()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _wake(self) -> None:
        """Starts a task for the next item, unless one is about to take it already."""
        if self._is_starting or not self._waiting or len(self._workers) >= self._max_open:
            return
        self._is_starting = True
        worker = asyncio.get_running_loop().create_task(self._serve())
        self._workers.add(worker)
        worker.add_done_callback(self._retire)

    def _retire(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not self._is_closed:
            self._wake()

    async def _serve(self) -> None:
        self._is_starting = False
        num_done = 0
        while self._waiting:
            item = heapq.heappop(self._waiting)[2]
            self._num_open += 1
            self._wake()  # should this item wait for something, the next one does not
            try:
                await self._work(item)
            except asyncio.CancelledError:
                worker = asyncio.current_task()
                if self._is_closed or worker is None:
                    raise
                worker.uncancel()
            finally:
                self._num_open -= 1
            num_done += 1
            if num_done % _BURST == 0:
                await asyncio.sleep(0)
