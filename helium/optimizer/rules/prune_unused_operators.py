"""Drops operators that no output needs.

>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Format, Input, Output, Reference
>>> from helium.plan.text import text
>>> before = LogicalPlan((
...     Input("q", column="q"),
...     Format("unused", text=text("never read: ", Reference("q"))),
...     Output("answer", source="q"),
... ))
>>> print(PruneUnusedOperators().apply(before).plan)
q = input q
answer = output q

Source: Helium, §4 (operator pruning).
"""

from __future__ import annotations

from helium.optimizer.rule import Rewrite
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Output


class PruneUnusedOperators:
    """One backward pass in topological order; see the module."""

    def apply(self, plan: LogicalPlan) -> Rewrite:
        """Returns the plan of what the outputs need, directly or not."""
        needed: set[str] = set()
        kept = []
        for operator in reversed(plan.operators):
            if isinstance(operator, Output) or operator.name in needed:
                needed.update(operator.reads)
                kept.append(operator)
        if len(kept) == len(plan.operators):
            return Rewrite(plan)
        return Rewrite(LogicalPlan(tuple(reversed(kept))))
