"""Counts under labels that clients choose, in a bounded number of series. Imports no vllm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

MAX_SERIES = 512
"""Operators with series of their own."""
OTHER = ("other", "other")
"""Workflow and operator under which the rest is counted."""

Totals = TypeVar("Totals", bound=Any)


class BoundedSeries(Generic[Totals]):
    """Totals by (workflow, operator).

    The least recently active operator makes room for a new one, and what it counted goes to
    ``other``, so that sums stay right and what runs now is seen.

    Args:
        make: Makes empty totals, which can ``add`` others of their kind.
    """

    def __init__(self, make: Callable[[], Totals], max_series: int = MAX_SERIES) -> None:
        self._make = make
        self._max_series = max_series
        self._totals: OrderedDict[tuple[str, str], Totals] = OrderedDict()
        self._other = make()

    def of(self, key: tuple[str, str]) -> Totals:
        """Returns the totals of an operator, which is the most recently active one from here."""
        totals = self._totals.get(key)
        if totals is None:
            if len(self._totals) >= self._max_series:
                self._other.add(self._totals.popitem(last=False)[1])
            totals = self._totals[key] = self._make()
        self._totals.move_to_end(key)
        return totals

    def items(self) -> list[tuple[tuple[str, str], Totals]]:
        """Lists all series, ``other`` last."""
        return [*self._totals.items(), (OTHER, self._other)]
