"""What a rule is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a plan rule made of a plan.

    Attributes:
        plan: The new plan, or the very same object when the rule changed nothing.
        replaced: Operators that are gone because another one does their work: old -> new name.
    """

    plan: LogicalPlan
    replaced: Mapping[str, str] = field(default_factory=dict)


class PlanRule(Protocol):
    """A rewrite that is right for every batch.

    It keeps the outputs (keys and order) and the value of each of their rows, and never makes an
    operator that is not deterministic run more or less often than a result depends on it.
    """

    def apply(self, plan: LogicalPlan) -> Rewrite:
        """Rewrites a valid plan into a valid plan; linear in the plan."""


class BatchRule(Protocol):
    """A rewrite of a plan together with its batch."""

    def apply(self, compiled: CompiledPlan) -> CompiledPlan:
        """Returns the new binding, or the very same object when nothing changed."""
