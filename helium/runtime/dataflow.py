"""Which rows can be computed now: the state of a run without clock, tasks or engines.

Every row of every operator waits for the rows it reads, and for nothing else. Work is linear in
rows x operators plus edges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.interpret import Value
from helium.plan.operators import (
    Concat,
    Data,
    Input,
    Llm,
    Operator,
    Output,
    Reference,
    Slice,
    Text,
    references,
)

Cell = tuple[str, int]
"""An operator's name and one of its rows."""


class Failed:
    """Marks a row whose value will never come."""


FAILED = Failed()
Slot = Value | Failed | None
"""The value of a row, ``FAILED``, or ``None`` while it is not there."""


class _Column:
    """An operator's rows.

    Attributes:
        representatives: Row -> the row computed for it (rule ``merge_equal_rows``).
        readers: Row -> the cells that wait for it; empty once it is there.
        num_missing: Row -> rows it waits for.
    """

    __slots__ = ("is_scalar", "num_missing", "readers", "representatives", "slots")

    def __init__(self, num_rows: int, is_scalar: bool, representatives: tuple[int, ...] | None):
        self.slots: list[Slot] = [None] * num_rows
        self.is_scalar = is_scalar
        self.representatives = representatives
        self.readers: list[list[Cell] | None] = [None] * num_rows
        self.num_missing: list[int] = [0] * num_rows

    def source_row(self, row: int) -> int:
        """Returns where row ``row`` of a row-wise reader finds its value."""
        if self.is_scalar:
            row = 0
        return row if self.representatives is None else self.representatives[row]


class Template:
    """A text with holes, which knows where its values are."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[str | tuple[_Column, int]]) -> None:
        self._parts = parts

    def fill(self, row: int) -> str:
        """Returns the text of a row, all of whose values are there."""
        filled = []
        for part in self._parts:
            if isinstance(part, str):
                filled.append(part)
            else:
                value = _value(part[0], row)
                filled.append(value if isinstance(value, str) else value[part[1]])
        return "".join(filled)


class Dataflow:
    """The rows of a bound plan and what they wait for; ``finish`` and ``fail`` mutate it."""

    def __init__(self, compiled: CompiledPlan) -> None:
        self._compiled = compiled
        self._plan = compiled.plan
        self._rows = compiled.rows
        self._columns: dict[str, _Column] = {}
        self._ready: deque[Cell] = deque()
        self._doomed: set[Cell] = set()
        for operator in self._plan.operators:
            self._connect(operator)

    def next_ready(self) -> Cell | None:
        """Takes a cell whose inputs are all there, or failed; see ``is_doomed``."""
        return self._ready.popleft() if self._ready else None

    def has_ready(self) -> bool:
        """Whether ``next_ready`` has something to give."""
        return bool(self._ready)

    def is_doomed(self, cell: Cell) -> bool:
        """Whether something the cell reads has failed."""
        return cell in self._doomed

    def finish(self, name: str, row: int, value: Value) -> None:
        """Takes the value of a row; what waited for it alone is ready now."""
        self._set(name, row, value)

    def fail(self, name: str, row: int) -> None:
        """Takes note that a row has no value; what reads it is doomed, and ready."""
        readers = self._columns[name].readers[row]
        if readers is not None:
            self._doomed.update(readers)
        self._set(name, row, FAILED)

    def slot(self, name: str, row: int) -> Slot:
        """Returns the value of any row, also of one that another row is computed for."""
        column = self._columns[name]
        return column.slots[row if column.representatives is None else column.representatives[row]]

    def read(self, row: int, source: str) -> Value:
        """Returns what row ``row`` of a row-wise operator reads from ``source``; it is there."""
        return _value(self._columns[source], row)

    def passed_on(self, operator: Slice | Concat | Output, row: int) -> Value:
        """Returns the value that a row of such an operator takes over; it is there."""
        ((source, source_row),) = self._rows.dependencies(operator.name, row)
        value = self.slot(source, source_row)
        assert value is not None and not isinstance(value, Failed), f"{source}[{source_row}]"
        return value

    def template(self, text: Text) -> Template:
        """Returns a row-wise operator's text, ready to be filled for any row."""
        return Template(
            [
                (self._columns[part.operator], part.choice)
                if isinstance(part, Reference)
                else part.text
                for part in text
            ]
        )

    def _set(self, name: str, row: int, value: Slot) -> None:
        column = self._columns[name]
        column.slots[row] = value
        readers = column.readers[row]
        if readers is None:
            return
        column.readers[row] = None
        for reader in readers:
            waiting = self._columns[reader[0]].num_missing
            waiting[reader[1]] -= 1
            if not waiting[reader[1]]:
                self._ready.append(reader)

    def _connect(self, operator: Operator) -> None:
        """Finds what every row to compute waits for; operators come producers first."""
        name = operator.name
        column = self._columns[name] = _Column(
            self._rows.num_rows(name),
            self._rows.is_scalar(name),
            self._compiled.representatives.get(name),
        )
        if isinstance(operator, (Input, Data)):
            column.slots = [self._compiled.value(operator, row) for row in range(len(column.slots))]
            return
        for row, known in self._compiled.known.get(name, {}).items():
            column.slots[row] = known[0] if len(known) == 1 else known
        if isinstance(operator, (Slice, Concat)):
            for row in self._compiled.demand.rows(name):
                ((source, source_row),) = self._rows.dependencies(name, row)
                read = self._columns[source]
                representatives = read.representatives
                at = source_row if representatives is None else representatives[source_row]
                self._wait((name, row), [(read, at)])
            return
        # Where every row is there already, as in columns of the batch, nobody waits.
        reads = [self._columns[read] for read in self._reads(operator)]
        reads = [read for read in reads if None in read.slots]
        for row in self._compiled.demand.rows(name):
            self._wait((name, row), [(read, read.source_row(row)) for read in reads])

    def _wait(self, cell: Cell, sources: Iterable[tuple[_Column, int]]) -> None:
        num_missing = 0
        for column, row in sources:
            if column.slots[row] is None:
                num_missing += 1
                readers = column.readers[row]
                if readers is None:
                    column.readers[row] = [cell]
                else:
                    readers.append(cell)
        self._columns[cell[0]].num_missing[cell[1]] = num_missing
        if not num_missing:
            self._ready.append(cell)

    def _reads(self, operator: Operator) -> Iterable[str]:
        """Returns the operators a value is made from; a conversation's are those of all turns."""
        if isinstance(operator, Llm) and operator.history is not None:
            messages = self._plan.conversation(operator.name)
            return dict.fromkeys(read for m in messages for read in references(m.content))
        return operator.reads


def _value(column: _Column, row: int) -> Value:
    value = column.slots[column.source_row(row)]
    assert value is not None and not isinstance(value, Failed), f"row {row} is not there"
    return value
