"""Leases of static template prefixes: per plan, adapter and salt; gone with the plan or its runs.

A lease is a soft pin: its blocks stay free, so the engine can always take them before it preempts
anything, but it takes them last. The index bounds leases in number and time, and renews one when a
request that used its blocks gives them back.

Source: Helium, §4 (proactive caching); budget, expiry and release under pressure are ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from vllm_helium.prefix_cache.index import PrefixIndex
from vllm_helium.prefix_cache.plan_uses import ALL_ROWS, TO_THE_END, Segments
from vllm_helium.prefix_cache.static_prefixes import StaticPrefix


class TemplateLease:
    """The leased prefixes of one plan in one namespace; ``is_closed`` once they were dropped."""

    def __init__(self, index: PrefixIndex, plan_id: int) -> None:
        self._index = index
        self.plan_id = plan_id
        self.is_closed = False

    def segments(self, prefix: StaticPrefix) -> Segments:
        """Tags of a prefix's tokens."""
        tags = [self._index.tag(self.plan_id, node, ALL_ROWS) for node in prefix.nodes]
        return [*zip(prefix.ends, tags, strict=True), (TO_THE_END, tags[-1])]

    def extend(self, prefix: StaticPrefix, lease_s: float) -> None:
        """Leases a prefix's blocks, those there are and those to come, from now on."""
        for _, tag in self.segments(prefix)[:-1]:
            self._index.lease(tag, lease_s)

    def close(self) -> None:
        self.is_closed = True
        self._index.close_plan(self.plan_id)


class TemplateLeases:
    """All template leases, by plan digest and namespace; the oldest goes first."""

    def __init__(self, index: PrefixIndex, plan_ids: Iterator[int], max_leases: int) -> None:
        self._index = index
        self._plan_ids = plan_ids
        self._max_leases = max_leases
        self._leases: OrderedDict[tuple[str, bytes], TemplateLease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def of(self, digest: str, namespace: bytes) -> TemplateLease:
        """The lease of a plan in a namespace; made on first sight."""
        lease = self._leases.get((digest, namespace))
        if lease is None:
            if len(self._leases) >= self._max_leases:
                self._leases.popitem(last=False)[1].close()
            lease = TemplateLease(self._index, next(self._plan_ids))
            self._leases[digest, namespace] = lease
        return lease

    def drop(self, digest: str) -> None:
        """Ends a plan's leases; what nobody else has used is evicted first."""
        for key in [key for key in self._leases if key[0] == digest]:
            self._leases.pop(key).close()
