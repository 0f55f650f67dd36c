"""The plans an engine knows, bounded in number and bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext


@dataclass(frozen=True)
class RegisteredPlan:
    """A plan and its lookup table."""

    plan: EnginePlan
    operators: dict[str, PlanOperator]
    num_bytes: int


class PlanRegistry:
    """Plans by digest; every operation is O(1) but for what it evicts."""

    def __init__(self, max_plans: int, max_bytes: int) -> None:
        self._max_plans = max_plans
        self._max_bytes = max_bytes
        self._plans: OrderedDict[str, RegisteredPlan] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._plans)

    def register(self, plan: EnginePlan) -> str:
        """Adds a plan, or renews one that is known; returns its digest.

        The newest plan always stays, even where it alone is over the byte bound.
        """
        digest = plan.digest()
        if digest in self._plans:
            self._plans.move_to_end(digest)
            return digest
        operators = {operator.name: operator for operator in plan.operators}
        entry = RegisteredPlan(plan, operators, len(plan.to_json()))
        self._plans[digest] = entry
        self.num_bytes += entry.num_bytes
        while len(self._plans) > 1 and (
            len(self._plans) > self._max_plans or self.num_bytes > self._max_bytes
        ):
            _, oldest = self._plans.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
        return digest

    def drop(self, digest: str) -> bool:
        """Forgets a plan; returns whether it was known."""
        entry = self._plans.pop(digest, None)
        if entry is None:
            return False
        self.num_bytes -= entry.num_bytes
        return True

    def resolve(self, context: WorkflowContext) -> PlanOperator | None:
        """Returns the operator a context names, or ``None`` where plan or operator is unknown."""
        entry = self._plans.get(context.plan)
        if entry is None:
            return None
        self._plans.move_to_end(context.plan)
        return entry.operators.get(context.operator)

    def __contains__(self, digest: str) -> bool:
        return digest in self._plans

    def describe(self) -> list[dict[str, object]]:
        """Lists the plans, least recently used first, as plain values."""
        return [
            {
                "digest": digest,
                "object": "helium.plan",
                "workflow": entry.plan.workflow,
                "num_operators": len(entry.operators),
                "num_bytes": entry.num_bytes,
            }
            for digest, entry in self._plans.items()
        ]
