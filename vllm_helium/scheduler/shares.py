"""Fair shares of an engine between runs: whose waiting call goes next.

Start-time fair queuing (Goyal, Vin and Cheng, 1996) over runs instead of packets: every run has a
virtual time, which grows by the tokens it was served; the run with the smallest goes next. A run
that had nothing waiting resumes at the present virtual time, so that it cannot save up turns. Runs
of one tenant share that tenant's part: each is charged as often as its tenant has waiting runs.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable

MAX_REMEMBERED = 4096
"""Runs without waiting calls whose debt is kept."""


class Share:
    """One run's account while it has waiting calls."""

    __slots__ = ("key", "num_waiting", "tenant", "turn", "virtual")

    def __init__(self, key: Hashable, tenant: Hashable, virtual: float) -> None:
        self.key = key
        self.tenant = tenant
        self.virtual = virtual
        self.num_waiting = 0
        self.turn = 0  # number of its valid entry in the order of turns


class Shares:
    """Accounts of all runs; every operation is O(log runs), amortized."""

    def __init__(self) -> None:
        self._shares: dict[Hashable, Share] = {}
        self._debts: OrderedDict[Hashable, float] = OrderedDict()
        self._runs_of_tenant: Counter[Hashable] = Counter()
        self._turns: list[tuple[float, int, Share]] = []
        self._num_pushed = 0
        self._limit = 64
        self._virtual = 0.0

    def __len__(self) -> int:
        return len(self._shares)

    def enter(self, key: Hashable, tenant: Hashable) -> Share:
        """A call of a run begins to wait."""
        share = self._shares.get(key)
        if share is None:
            virtual = max(self._virtual, self._debts.pop(key, 0.0))
            share = self._shares[key] = Share(key, tenant, virtual)
            self._runs_of_tenant[tenant] += 1
            self._push(share)
        share.num_waiting += 1
        return share

    def leave(self, share: Share) -> None:
        """A call of a run waits no longer."""
        share.num_waiting -= 1
        if share.num_waiting:
            return
        del self._shares[share.key]
        self._runs_of_tenant[share.tenant] -= 1
        if not self._runs_of_tenant[share.tenant]:
            del self._runs_of_tenant[share.tenant]
        if share.virtual > self._virtual:
            self._remember(share.key, share.virtual)

    def serve(self, share: Share, num_tokens: float) -> None:
        """Charges a run whose call is admitted now; called before the call leaves."""
        self._virtual = max(self._virtual, share.virtual)
        self.charge(share.key, share.tenant, num_tokens)

    def charge(self, key: Hashable, tenant: Hashable, num_tokens: float) -> None:
        """Adds to a run's account; negative where less was used than charged."""
        cost = num_tokens * max(1, self._runs_of_tenant[tenant])
        share = self._shares.get(key)
        if share is not None:
            share.virtual += cost
            self._push(share)
        elif (debt := self._debts.pop(key, self._virtual) + cost) > self._virtual:
            self._remember(key, debt)

    def first(self) -> Share | None:
        """Returns the run whose turn it is, among those with waiting calls."""
        while self._turns:
            if self._is_valid(self._turns[0]):
                return self._turns[0][2]
            heapq.heappop(self._turns)
        return None

    @staticmethod
    def _is_valid(turn: tuple[float, int, Share]) -> bool:
        _, number, share = turn
        return share.num_waiting > 0 and number == share.turn

    def _push(self, share: Share) -> None:
        if len(self._turns) >= self._limit:
            self._turns = [turn for turn in self._turns if self._is_valid(turn)]
            self._limit = 64 + 2 * len(self._turns)
            heapq.heapify(self._turns)
        self._num_pushed = share.turn = self._num_pushed + 1  # shares themselves are never compared
        heapq.heappush(self._turns, (share.virtual, self._num_pushed, share))

    def _remember(self, key: Hashable, debt: float) -> None:
        self._debts[key] = debt
        self._debts.move_to_end(key)
        if len(self._debts) > MAX_REMEMBERED:
            self._debts.popitem(last=False)
