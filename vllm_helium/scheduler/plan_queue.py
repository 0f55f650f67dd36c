"""The waiting queue: fair shares between runs, plan order inside a run, bounds on overtaking.

* *Runs* take turns by their shares (``shares``), so that no run waits for all of another.
* *Inside a run*, calls go by their place in the plan. One older than ``aging_s`` goes before all
  others of its run, oldest first: whatever the plan says, a call waits for at most ``aging_s`` and
  the calls of its run that arrived before it, at its run's share.
* *Ordinary* requests have a share as one run, and none is overtaken by a request that arrived after
  it: ordinary traffic never waits longer for its turn than it would first come, first served. The
  one exception is a request held for its sibling's prompt (``sibling_holds``): a few steps at most.

Adding, peeking and popping cost O(log n) amortized; removal is O(1) and lazy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from vllm_helium.scheduler.shares import Share, Shares

ORDINARY = ("ordinary",)
"""Key and tenant of ordinary traffic's share."""

PLANS = ("plans",)
"""Key and tenant of all planned requests where runs have no shares of their own."""


class Place(NamedTuple):
    """Where a request belongs.

    Attributes:
        run: Whose share it takes; ``ORDINARY`` for ordinary requests.
        tenant: Whose part its run shares.
        position: Smaller first, inside its run; of one length for all requests.
        num_tokens: What it is charged for, in tokens of KV.
    """

    run: Hashable
    tenant: Hashable
    position: tuple[int, ...]
    num_tokens: float


class _Entry:
    """One stay of a request in the queue."""

    __slots__ = ("arrival", "is_waiting", "lane", "place", "request")

    def __init__(
        self, request: Request, arrival: tuple[float, int], lane: _Lane, place: Place
    ) -> None:
        self.request = request
        self.arrival = arrival
        self.lane = lane
        self.place = place
        self.is_waiting = True


class _Heap:
    """Entries by key; entries that left the queue are dropped when they reach the top."""

    def __init__(self) -> None:
        self._items: list[tuple[tuple[float, ...], int, _Entry]] = []
        self._limit = 64
        self._num_pushed = 0

    def push(self, key: tuple[float, ...], entry: _Entry) -> None:
        """Adds an entry."""
        if len(self._items) >= self._limit:
            self._items = [item for item in self._items if item[2].is_waiting]
            heapq.heapify(self._items)
            self._limit = max(64, 2 * len(self._items))
        self._num_pushed += 1  # entries themselves are never compared
        heapq.heappush(self._items, (key, self._num_pushed, entry))

    def peek(self) -> _Entry | None:
        """Returns the waiting entry with the smallest key."""
        while self._items:
            entry = self._items[0][2]
            if entry.is_waiting:
                return entry
            heapq.heappop(self._items)
        return None


class _Lane:
    """The waiting requests of one run."""

    __slots__ = ("by_arrival", "by_position", "share")

    def __init__(self, share: Share) -> None:
        self.by_position = _Heap()
        self.by_arrival = _Heap()
        self.share = share

    def head(self, now: float, aging_s: float) -> _Entry:
        oldest, first = self.by_arrival.peek(), self.by_position.peek()
        assert oldest is not None and first is not None, "a run without waiting calls has a lane"
        return oldest if now - oldest.arrival[0] > aging_s else first


class PlanQueue(RequestQueue):
    """Waiting requests in plan order.

    Args:
        aging_s: Age in seconds after which a request goes by arrival inside its run.
        place_of: Where a request belongs.

    ``now`` is the time of the current step on the clock of ``Request.arrival_time``, in seconds.
    The scheduler moves it once a step, so ``pop_request`` returns what ``peek_request`` returned.
    """

    def __init__(self, aging_s: float, place_of: Callable[[Request], Place]) -> None:
        self._aging_s = aging_s
        self._place_of = place_of
        self._lanes: dict[Hashable, _Lane] = {}
        self._shares = Shares()
        self._entries: dict[str, _Entry] = {}
        self._num_added = 0
        self.now = 0.0

    # --- adding ----------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        assert request.request_id not in self._entries, f"{request.request_id} is queued twice"
        place = self._place_of(request)
        share = self._shares.enter(place.run, place.tenant)
        lane = self._lanes.get(place.run)
        if lane is None:
            lane = self._lanes[place.run] = _Lane(share)
        self._num_added += 1
        arrival = (request.arrival_time, self._num_added)
        entry = self._entries[request.request_id] = _Entry(request, arrival, lane, place)
        lane.by_position.push((*place.position, *arrival), entry)
        lane.by_arrival.push(arrival, entry)

    def prepend_request(self, request: Request) -> None:
        """Puts a preempted or skipped request back at its own place, and gives its charge back."""
        self.add_request(request)
        place = self._entries[request.request_id].place
        self._shares.charge(place.run, place.tenant, -place.num_tokens)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    # --- the head --------------------------------------------------------------------------------

    def _head(self) -> _Entry:
        share = self._shares.first()
        if share is None:
            raise IndexError("no request is waiting")
        head = self._lanes[share.key].head(self.now, self._aging_s)
        if share.key != ORDINARY and (lane := self._lanes.get(ORDINARY)) is not None:
            ordinary = lane.by_arrival.peek()
            if ordinary is not None and ordinary.arrival < head.arrival:
                return ordinary
        return head

    def peek_request(self) -> Request:
        return self._head().request

    def pop_request(self) -> Request:
        entry = self._head()
        self._shares.serve(entry.lane.share, entry.place.num_tokens)
        self.remove_request(entry.request)
        return entry.request

    def charge(self, request: Request, num_tokens: float) -> None:
        """Corrects the account of a request's run once it is known what the request took."""
        place = self._place_of(request)
        self._shares.charge(place.run, place.tenant, num_tokens)

    # --- removing --------------------------------------------------------------------------------

    def remove_request(self, request: Request) -> None:
        entry = self._entries.pop(request.request_id)
        entry.is_waiting = False
        share = entry.lane.share
        self._shares.leave(share)
        if not share.num_waiting:
            del self._lanes[entry.place.run]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.request_id in self._entries:
                self.remove_request(request)

    # --- counts ----------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        """Yields every waiting request, those of one run together, by position."""
        entries = sorted(
            self._entries.values(),
            key=lambda entry: (str(entry.place.run), entry.place.position, entry.arrival),
        )
        return (entry.request for entry in entries)
