"""Several submitted workflows as one plan, so that the rules share between them.

Merging only puts plans side by side; ``optimize`` then finds what they have in common. Tenants are
never put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from helium.errors import WorkflowError
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Operator, Output
from helium.plan.rewrite import renamed, replace_reads

_V = TypeVar("_V")


class Submission(msgspec.Struct, frozen=True):
    """A bound workflow that somebody asked to run.

    Attributes:
        id: Unique among the submissions merged together; no ``/``.
    """

    id: str
    tenant: str
    compiled: CompiledPlan


class MergedPlan(msgspec.Struct, frozen=True):
    """The workflows of one tenant side by side.

    Operators, outputs and result keys of submission ``s`` are called ``s/<name>``.

    Attributes:
        names: Submission id -> its operators' names -> their names in ``compiled``.
    """

    tenant: str
    compiled: CompiledPlan
    names: dict[str, dict[str, str]]

    def split(self, results: Mapping[str, _V]) -> dict[str, dict[str, _V]]:
        """Returns the results by submission and its own keys."""
        split: dict[str, dict[str, _V]] = {submission: {} for submission in self.names}
        for key, value in results.items():
            submission, _, own_key = key.partition("/")
            split[submission][own_key] = value
        return split


def merge_plans(submissions: Sequence[Submission]) -> list[MergedPlan]:
    """Puts the submissions of each tenant into one plan, tenants in order of appearance.

    Columns with equal values become one column, whatever they are called, so that operators over
    them can be shared.

    Raises:
        WorkflowError: Two submissions have the same id.
    """
    ids = [submission.id for submission in submissions]
    for id in ids:
        if not id or "/" in id or ids.count(id) > 1:
            raise WorkflowError(
                f"submission id {id!r} must be unique, not empty and without '/'; got {ids}"
            )
    tenants = dict.fromkeys(submission.tenant for submission in submissions)
    return [_merge(tenant, [s for s in submissions if s.tenant == tenant]) for tenant in tenants]


def _merge(tenant: str, submissions: Iterable[Submission]) -> MergedPlan:
    operators: list[Operator] = []
    names: dict[str, dict[str, str]] = {}
    columns: dict[str | tuple[str, ...], str] = {}
    known: dict[str, dict[int, tuple[str, ...]]] = {}
    representatives: dict[str, tuple[int, ...]] = {}
    for submission in submissions:
        compiled = submission.compiled
        prefix = f"{submission.id}/"
        own = {operator.name: prefix + operator.name for operator in compiled.plan.operators}
        names[submission.id] = own
        for operator in compiled.plan.operators:
            operator = renamed(replace_reads(operator, own), own[operator.name])
            if isinstance(operator, Input):
                values = compiled.columns[operator.column]
                column = columns.setdefault(values, prefix + operator.column)
                operator = msgspec.structs.replace(operator, column=column)
            elif isinstance(operator, Output):
                operator = msgspec.structs.replace(operator, key=prefix + operator.key)
            operators.append(operator)
        known.update({own[name]: rows for name, rows in compiled.known.items()})
        representatives.update({own[n]: rows for n, rows in compiled.representatives.items()})
    plan = LogicalPlan(tuple(operators))
    plan.validate()
    bound = {column: values for values, column in columns.items()}
    return MergedPlan(tenant, CompiledPlan(plan, bound, known, representatives), names)
