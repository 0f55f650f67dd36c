"""How many rows every operator has for a batch, and which rows depend on which.

The rules:

- A column of the batch has one row per value; one given as a plain string is a scalar.
- An operator is row-wise unless it is a slice or a concatenation: its row ``r`` reads row ``r`` of
  what it reads. Scalars have one row and are read at row 0 by everyone (they broadcast); all others
  must agree. What reads scalars only, or nothing, is a scalar and is computed once.
- ``Slice`` and ``Concat`` make vectors; a scalar among their sources counts as one row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from helium.errors import WorkflowError
from helium.plan.operators import Concat, Data, Input, Operator, Slice
from helium.plan.validation import where


class Rows:
    """The row structure of a plan bound to a batch; built in time linear in the operators.

    ``num_rows`` and ``is_scalar`` are by operator name. Everything here depends on the lengths of
    the columns alone, never on their values.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        columns: Mapping[str, str | Sequence[str]],
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Computes the rows of every operator.

        Args:
            operators: A valid plan's operators.
            columns: The batch; every column the plan needs.
            sources: Where each operator was written, for messages.

        Raises:
            WorkflowError: Two operators that are read together differ in rows; names both.
        """
        self._sources = sources or {}
        self._by_name = {operator.name: operator for operator in operators}
        self._num_rows: dict[str, int] = {}
        self._is_scalar: dict[str, bool] = {}
        self._slices: dict[str, range] = {}
        self._offsets: dict[str, list[int]] = {}
        for operator in operators:
            num_rows, is_scalar = self._count(operator, columns)
            self._num_rows[operator.name] = num_rows
            self._is_scalar[operator.name] = is_scalar

    def num_rows(self, name: str) -> int:
        """Returns how many rows the operator has; 1 for a scalar."""
        return self._num_rows[name]

    def is_scalar(self, name: str) -> bool:
        """Returns whether the operator has a single row that broadcasts."""
        return self._is_scalar[name]

    def source_row(self, name: str, row: int, input_name: str) -> int:
        """Returns the row of ``input_name`` that row ``row`` of operator ``name`` needs.

        For a row-wise operator ``input_name`` may also be something it reads indirectly through
        row-wise operators, as the histories of a conversation are.

        Raises:
            WorkflowError: ``name`` is a concatenation whose row comes from another source, or has
                no such row.
        """
        if not 0 <= row < self._num_rows[name]:
            raise WorkflowError(
                f"operator {name!r} has {self._num_rows[name]} row(s), row {row} was asked for"
            )
        operator = self._by_name[name]
        match operator:
            case Slice():
                return self._slices[name][row]
            case Concat():
                source, source_row = self._concat_source(operator, row)
                if source != input_name:
                    raise WorkflowError(
                        f"row {row} of operator {name!r} comes from {source!r}, not {input_name!r}"
                    )
                return source_row
        return 0 if self._is_scalar[input_name] else row

    def dependencies(self, name: str, row: int) -> tuple[tuple[str, int], ...]:
        """Returns the (operator, row) pairs that this row reads directly, without repeats."""
        operator = self._by_name[name]
        match operator:
            case Slice():
                return ((operator.source, self._slices[name][row]),)
            case Concat():
                return (self._concat_source(operator, row),)
        is_scalar = self._is_scalar
        return tuple((read, 0 if is_scalar[read] else row) for read in operator.reads)

    def dependent_rows(self, name: str, input_name: str, input_row: int) -> Sequence[int]:
        """Returns the rows of operator ``name`` that read row ``input_row`` of ``input_name``.

        The inverse of ``dependencies``. ``name`` must read ``input_name`` directly.
        """
        operator = self._by_name[name]
        match operator:
            case Slice():
                rows = self._slices[name]
                return (rows.index(input_row),) if input_row in rows else ()
            case Concat():
                offsets = self._offsets[name]
                return tuple(
                    offset + input_row
                    for offset, source in zip(offsets, operator.sources, strict=True)
                    if source == input_name
                )
        if self._is_scalar[input_name]:
            return range(self._num_rows[name])
        return (input_row,)

    def _concat_source(self, operator: Concat, row: int) -> tuple[str, int]:
        offsets = self._offsets[operator.name]
        # An empty source shares its offset with its successor; the last of them has the row.
        index = bisect_right(offsets, row) - 1
        return operator.sources[index], row - offsets[index]

    def _count(
        self, operator: Operator, columns: Mapping[str, str | Sequence[str]]
    ) -> tuple[int, bool]:
        match operator:
            case Input():
                column = columns[operator.column]
                return (1, True) if isinstance(column, str) else (len(column), False)
            case Data():
                return len(operator.values), operator.is_scalar
            case Slice():
                bounds = slice(operator.start, operator.stop, operator.step)
                rows = range(self._num_rows[operator.source])[bounds]
                self._slices[operator.name] = rows
                return len(rows), False
            case Concat():
                offset = 0
                offsets = self._offsets[operator.name] = []
                for source in operator.sources:
                    offsets.append(offset)
                    offset += self._num_rows[source]
                return offset, False
        return self._common_rows(operator)

    def _common_rows(self, operator: Operator) -> tuple[int, bool]:
        first: str | None = None
        for name in operator.reads:
            if self._is_scalar[name]:
                continue
            if first is None:
                first = name
            elif self._num_rows[name] != self._num_rows[first]:
                raise WorkflowError(
                    f"{where(operator.name, self._sources)} reads "
                    f"{where(first, self._sources)} with {self._num_rows[first]} row(s) and "
                    f"{where(name, self._sources)} with {self._num_rows[name]}; rows are matched "
                    "one to one, so give both the same number, or pass one value to broadcast it"
                )
        return (1, True) if first is None else (self._num_rows[first], False)
