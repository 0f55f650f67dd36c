"""Which rows of which operators a run has to compute.

Walks back from the results, row by row: a slice needs some rows only, a known output needs none of
its inputs, and a row equal to an earlier one needs that one instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from helium.plan.operators import Concat, Data, Input, Llm, Operator, Output, Reference, Slice
from helium.plan.rewrite import texts
from helium.plan.rows import Rows


class Demand:
    """The rows to compute per operator; linear in the rows, faster where all of them are needed."""

    def __init__(
        self,
        operators: Sequence[Operator],
        rows: Rows,
        known: Mapping[str, Mapping[int, object]],
        representatives: Mapping[str, Sequence[int]],
    ) -> None:
        """Computes the demand of a valid, bound plan; see ``CompiledPlan`` for the arguments."""
        self._rows = rows
        self._known = known
        self._representatives = representatives
        # None stands for all rows.
        self._needed: dict[str, set[int] | None] = {}
        # Rows whose messages are part of a prompt, called or not: a later turn repeats them.
        self._rendered: dict[str, set[int] | None] = {}
        self._computed: dict[str, Sequence[int]] = {}
        for operator in reversed(operators):
            self._visit(operator)

    def rows(self, name: str) -> Sequence[int]:
        """Returns the rows of the operator to compute, in ascending order."""
        return self._computed[name]

    def _visit(self, operator: Operator) -> None:
        name = operator.name
        needed = None if isinstance(operator, Output) else self._needed.get(name, set())
        computed = self._to_compute(name, needed)
        self._computed[name] = (
            range(self._rows.num_rows(name)) if computed is None else sorted(computed)
        )
        match operator:
            case Input() | Data():
                return
            case Slice() | Concat():
                for row in self._computed[name]:
                    for source, source_row in self._rows.dependencies(name, row):
                        self._need(source, (source_row,))
            case Llm():
                rendered = _union(self._rendered.get(name, set()), computed)
                self._need_references(operator, rendered)
                if operator.history is not None:
                    self._need_row_wise(operator.history, rendered)
                    self._add(self._rendered, operator.history, rendered)
            case _:
                for source in operator.reads:
                    self._need_row_wise(source, computed)

    def _to_compute(self, name: str, needed: set[int] | None) -> set[int] | None:
        representatives = self._representatives.get(name)
        known = self._known.get(name)
        if representatives is None and not known:
            return needed
        rows: Iterable[int] = range(self._rows.num_rows(name)) if needed is None else needed
        if representatives is not None:
            rows = {representatives[row] for row in rows}
        return {row for row in rows if not known or row not in known}

    def _need_references(self, operator: Llm, rows: set[int] | None) -> None:
        for text in texts(operator):
            for part in text:
                if isinstance(part, Reference):
                    self._need_row_wise(part.operator, rows)

    def _need_row_wise(self, name: str, rows: set[int] | None) -> None:
        self._add(self._needed, name, rows)

    def _need(self, name: str, rows: Iterable[int]) -> None:
        needed = self._needed.setdefault(name, set())
        if needed is not None:
            needed.update(rows)

    def _add(self, demand: dict[str, set[int] | None], name: str, rows: set[int] | None) -> None:
        """Adds the rows of a row-wise reader; a scalar is needed at row 0 if any row is."""
        if rows is not None and not rows:
            return
        if self._rows.is_scalar(name):
            rows = {0}
        demand[name] = _union(demand.get(name, set()), rows)


def _union(first: set[int] | None, second: set[int] | None) -> set[int] | None:
    if first is None or second is None:
        return None
    return first | second
