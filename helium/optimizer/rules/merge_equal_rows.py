"""Computes rows that must have equal values once.

>>> from helium.plan.compiled_plan import bind
>>> from helium.plan.logical_plan import LogicalPlan
>>> from helium.plan.operators import Input, Llm, Message, Output, Reference
>>> from helium.plan.text import text
>>> plan = LogicalPlan((
...     Input("q", column="q"),
...     Llm("a", messages=(Message("user", text(Reference("q"))),)),
...     Output("answer", source="a"),
... ))
>>> before = bind(plan, {"q": ["Why?", "How?", "Why?"]})
>>> list(before.calls("a"))
[0, 1, 2]
>>> after = MergeEqualRows().apply(before)
>>> list(after.calls("a")), after.representatives
([0, 1], {'a': (0, 1, 0)})

Source: Helium, §4 (common subgraphs across the queries of a batch).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import msgspec

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.operators import Concat, Data, Input, Lambda, Llm, Operator, Slice
from helium.plan.rows import Rows

Partition = tuple[int, ...]
"""Row -> first row with the same value."""


class MergeEqualRows:
    """Marks equal rows of LLM operators and functions in ``CompiledPlan.representatives``.

    Two rows of an operator are equal when all its operands are equal there. The rows of a call that
    is not deterministic are all different. Operators over the same operands share one computation,
    so the cost is rows x distinct operand sets, not rows x operators.
    """

    def apply(self, compiled: CompiledPlan) -> CompiledPlan:
        """Returns the binding with the representatives of every operator that has equal rows."""
        partitions = _Partitions(compiled)
        found = {
            operator.name: partition
            for operator in compiled.plan.operators
            if (partition := partitions.add(operator)) and isinstance(operator, (Llm, Lambda))
        }
        if found == compiled.representatives:
            return compiled
        return msgspec.structs.replace(compiled, representatives=found)


class _Partitions:
    def __init__(self, compiled: CompiledPlan) -> None:
        self._compiled = compiled
        self._rows: Rows = compiled.rows
        # None: all rows differ.
        self._partitions: dict[str, Partition | None] = {}
        # What the rows of a slice or concatenation are: (operator, row) or a text.
        self._tokens: dict[str, list[Hashable]] = {}
        self._columns: dict[str, Partition | None] = {}
        self._common: dict[tuple[int, ...], Partition | None] = {}

    def add(self, operator: Operator) -> Partition | None:
        partition = self._partition(operator)
        self._partitions[operator.name] = partition
        return partition

    def _partition(self, operator: Operator) -> Partition | None:
        if self._rows.is_scalar(operator.name):
            return None
        match operator:
            case Input():
                if operator.column not in self._columns:
                    column = self._compiled.columns[operator.column]
                    self._columns[operator.column] = _partition(column)
                return self._columns[operator.column]
            case Data():
                return _partition(operator.values)
            case Slice() | Concat():
                rows = range(self._rows.num_rows(operator.name))
                tokens = [
                    self._token(*source)
                    for row in rows
                    for source in self._rows.dependencies(operator.name, row)
                ]
                self._tokens[operator.name] = tokens
                return _partition(tokens)
            case Llm() if not operator.sampling.is_deterministic:
                return None
        return self._meet(name for name in operator.reads if not self._rows.is_scalar(name))

    def _meet(self, names: Iterable[str]) -> Partition | None:
        """Returns the partition whose classes agree in every operand."""
        operands = []
        for name in names:
            partition = self._partitions[name]
            if partition is None:
                return None
            operands.append(partition)
        # Partitions live as long as this object, so their ids are theirs alone.
        unique = {id(partition): partition for partition in operands}
        key = tuple(sorted(unique))
        if key not in self._common:
            merged = list(unique.values())
            rows = merged[0] if len(merged) == 1 else _partition(list(zip(*merged, strict=True)))
            self._common[key] = rows
        return self._common[key]

    def _token(self, name: str, row: int) -> Hashable:
        operator = self._compiled.plan.by_name[name]
        match operator:
            case Input() | Data():
                return self._compiled.value(operator, row)
            case Slice() | Concat():
                return self._tokens[name][row]
        partition = self._partitions[name]
        return (name, row if partition is None else partition[row])


def _partition(tokens: Sequence[Hashable]) -> Partition | None:
    first: dict[Hashable, int] = {}
    partition = tuple(first.setdefault(token, row) for row, token in enumerate(tokens))
    return partition if len(first) < len(partition) else None
