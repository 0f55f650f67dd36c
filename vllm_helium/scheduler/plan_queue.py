"""The waiting queue in plan order, with a bound on overtaking.

Three orders meet here. *Planned* requests go by rank, then arrival. A planned request older than
``aging_s`` goes by arrival, whatever its rank. *Ordinary* requests go by arrival, and none is
overtaken by a request that arrived after it, so ordinary traffic never waits longer for its turn
than it would first come, first served.

Adding, peeking and popping cost O(log n) amortized; removal is O(1) and lazy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request


class _Entry:
    """One stay of a request in the queue."""

    __slots__ = ("is_waiting", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_waiting = True


class _Heap:
    """Entries by key; entries that left the queue are dropped when they reach the top."""

    def __init__(self) -> None:
        self._items: list[tuple[tuple[float, ...], _Entry]] = []
        self._limit = 64

    def push(self, key: tuple[float, ...], entry: _Entry) -> None:
        """Adds an entry; ``key`` is unique, so entries themselves are never compared."""
        if len(self._items) >= self._limit:
            self._items = [item for item in self._items if item[1].is_waiting]
            heapq.heapify(self._items)
            self._limit = max(64, 2 * len(self._items))
        heapq.heappush(self._items, (key, entry))

    def peek(self) -> _Entry | None:
        """Returns the waiting entry with the smallest key."""
        while self._items:
            entry = self._items[0][1]
            if entry.is_waiting:
                return entry
            heapq.heappop(self._items)
        return None

    def __iter__(self) -> Iterator[_Entry]:
        return (entry for _, entry in sorted(self._items) if entry.is_waiting)


class PlanQueue(RequestQueue):
    """Waiting requests ordered by plan rank, with aging.

    Args:
        aging_s: Age in seconds after which a planned request is served in order of arrival.
        rank_of: Place of a request in its plan, smaller first and always of the same length, or
            ``None`` for an ordinary request.

    ``now`` is the time of the current step on the clock of ``Request.arrival_time``, in seconds.
    The scheduler moves it once a step, so ``pop_request`` returns what ``peek_request`` returned.
    """

    def __init__(
        self, aging_s: float, rank_of: Callable[[Request], tuple[int, ...] | None]
    ) -> None:
        self._aging_s = aging_s
        self._rank_of = rank_of
        self._by_rank = _Heap()
        self._by_arrival = _Heap()
        self._ordinary = _Heap()
        self._entries: dict[str, _Entry] = {}
        self._num_added = 0
        self.now = 0.0

    def add_request(self, request: Request) -> None:
        assert request.request_id not in self._entries, f"{request.request_id} is queued twice"
        entry = self._entries[request.request_id] = _Entry(request)
        self._num_added += 1
        arrival = (request.arrival_time, self._num_added)
        rank = self._rank_of(request)
        if rank is None:
            self._ordinary.push(arrival, entry)
        else:
            self._by_rank.push((*rank, *arrival), entry)
            self._by_arrival.push(arrival, entry)

    def _head(self) -> Request:
        planned = self._by_rank.peek()
        ordinary = self._ordinary.peek()
        if planned is not None:
            oldest = self._by_arrival.peek()
            assert oldest is not None, "a planned request is missing from the order of arrival"
            if self.now - oldest.request.arrival_time > self._aging_s:
                planned = oldest
            if ordinary is None or ordinary.request.arrival_time > planned.request.arrival_time:
                return planned.request
        if ordinary is None:
            raise IndexError("no request is waiting")
        return ordinary.request

    def peek_request(self) -> Request:
        return self._head()

    def pop_request(self) -> Request:
        request = self._head()
        self.remove_request(request)
        return request

    def prepend_request(self, request: Request) -> None:
        """Puts a preempted or skipped request back at its own place."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        self._entries.pop(request.request_id).is_waiting = False

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.request_id in self._entries:
                self.remove_request(request)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        """Yields every waiting request: planned ones by rank, then ordinary ones by arrival."""
        return (entry.request for entry in chain(self._by_rank, self._ordinary))
