"""A bound on copying: text that many operators read must not be written out for each of them.

Formats that build on formats double with every level when written out. The budget is linear in the
plan; a copy that does not fit is not made, which costs sharing but never changes a result.
"""

from __future__ import annotations

from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Data, Text
from helium.plan.rewrite import num_characters, texts

_FLOOR = 1 << 20
_FACTOR = 8
_PART = 64
"""A hole or literal costs as much as this many characters, which is about its JSON."""


def cost(text: Text) -> int:
    """Returns what a copy of the text costs, in characters."""
    return num_characters(text) + _PART * len(text)


class Budget:
    """What may still be copied, in characters."""

    def __init__(self, plan: LogicalPlan) -> None:
        """Starts with a multiple of the plan's own size, which is found when first asked for."""
        self._plan = plan
        self._left: int | None = None

    def take(self, amount: int) -> bool:
        """Takes the amount if it is there; says whether it was."""
        if self._left is None:
            self._left = max(_FLOOR, _FACTOR * _size(self._plan))
        if amount > self._left:
            return False
        self._left -= amount
        return True


def _size(plan: LogicalPlan) -> int:
    size = 0
    for operator in plan.operators:
        if isinstance(operator, Data):
            size += sum(map(len, operator.values))
        size += sum(cost(text) for text in texts(operator))
    return size
