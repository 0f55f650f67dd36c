"""A logical plan bound to a batch: what is optimized with values in hand, planned and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec

from helium.errors import WorkflowError
from helium.plan.demand import Demand
from helium.plan.functions import REGISTRY, Function, unknown_function
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Data, Input, Lambda
from helium.plan.rows import Rows
from helium.plan.unicode import NO_UNICODE, is_unicode
from helium.plan.validation import where


class CompiledPlan(
    msgspec.Struct, frozen=True, dict=True, weakref=True, forbid_unknown_fields=True
):
    """A plan, the columns of its batch, and outputs already known. Make one with ``bind``.

    Attributes:
        columns: Exactly the columns the plan needs; a plain string is a scalar.
        known: Outputs known before the run, as operator -> row -> its ``n`` outputs (rule
            ``substitute_cached``). These calls need not be made.
        representatives: For operators with rows that must have equal values: row -> the first row
            with that value (rule ``merge_equal_rows``). Only representatives need computing.
    """

    plan: LogicalPlan
    columns: dict[str, str | tuple[str, ...]]
    known: dict[str, dict[int, tuple[str, ...]]] = {}
    representatives: dict[str, tuple[int, ...]] = {}

    @cached_property
    def rows(self) -> Rows:
        """The row structure: counts, and which rows read which."""
        return Rows(self.plan.operators, self.columns)

    @cached_property
    def demand(self) -> Demand:
        """What has to be computed, row by row."""
        return Demand(self.plan.operators, self.rows, self.known, self.representatives)

    def calls(self, name: str) -> Sequence[int]:
        """Returns the rows of an LLM operator that have to be called, in order.

        Leaves out rows that are known, that equal an earlier row, or that no result needs.
        """
        return self.demand.rows(name)

    def with_plan(self, plan: LogicalPlan) -> CompiledPlan:
        """Returns the binding for a plan rewritten from this one, without what it lost."""
        names = plan.by_name
        return CompiledPlan(
            plan,
            {column: self.columns[column] for column in plan.columns},
            {name: known for name, known in self.known.items() if name in names},
            {name: rows for name, rows in self.representatives.items() if name in names},
        )

    def value(self, operator: Input | Data, row: int) -> str:
        """Returns the value of a row that needs no computing."""
        if isinstance(operator, Data):
            return operator.values[row]
        column = self.columns[operator.column]
        return column if isinstance(column, str) else column[row]


def bind(
    plan: LogicalPlan,
    batch: Mapping[str, str | Sequence[str]],
    *,
    sources: Mapping[str, str] | None = None,
    functions: Mapping[str, Function] = REGISTRY,
) -> CompiledPlan:
    """Binds a valid plan's inputs by name; runs nothing.

    Args:
        batch: Column -> its values, or one string for all rows. Columns may differ in length as
            long as no operator reads both.
        sources: Where each operator was written (``file:line``), for messages.
        functions: Where the functions of ``Lambda`` operators are looked up.

    Raises:
        WorkflowError: A column is missing, unknown or not text, rows do not match, or a function is
            not registered.
    """
    sources = sources or {}
    _check_functions(plan, functions, sources)
    compiled = CompiledPlan(plan, _columns(plan, batch))
    compiled.__dict__["rows"] = Rows(plan.operators, compiled.columns, sources)
    return compiled


def _columns(
    plan: LogicalPlan, batch: Mapping[str, str | Sequence[str]]
) -> dict[str, str | tuple[str, ...]]:
    missing = [column for column in plan.columns if column not in batch]
    unknown = [column for column in batch if column not in plan.columns]
    if missing or unknown:
        problem = f"lacks {missing}" if missing else f"has {unknown}, which no operator reads"
        raise WorkflowError(
            f"batch: {problem}; expected the columns {list(plan.columns)}, got {list(batch)}"
        )
    columns: dict[str, str | tuple[str, ...]] = {}
    for column in plan.columns:
        values = batch[column]
        if isinstance(values, str):
            _check_text(values, column, "as its value")
        else:
            values = tuple(values)
            for row, value in enumerate(values):
                if not isinstance(value, str):
                    raise WorkflowError(
                        f"batch: column {column!r} has a {type(value).__name__} in row {row}; "
                        "every value must be a string"
                    )
                _check_text(value, column, f"in row {row}")
        columns[column] = values
    return columns


def _check_text(value: str, column: str, where: str) -> None:
    if not is_unicode(value):
        raise WorkflowError(
            f"batch: column {column!r} has text with half a surrogate pair {where}, {NO_UNICODE}"
        )


def _check_functions(
    plan: LogicalPlan, functions: Mapping[str, Function], sources: Mapping[str, str]
) -> None:
    for operator in plan.operators:
        if isinstance(operator, Lambda) and operator.function not in functions:
            raise WorkflowError(
                f"{where(operator.name, sources)}: {unknown_function(operator.function, functions)}"
            )
