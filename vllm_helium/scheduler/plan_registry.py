"""The plans an engine knows, bounded in number and bytes, least recently used first out."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext
from helium.templates.rendering import Run, Value, VariableRun
from helium.templates.segments import segment_lengths


@dataclass(frozen=True)
class RegisteredPlan:
    """A plan and its lookup tables."""

    plan: EnginePlan
    operators: dict[str, PlanOperator]
    num_bytes: int
    stages_to_go: dict[str, int]
    _runs: dict[str, list[Run]] = field(default_factory=dict)

    def runs(self, operator: PlanOperator) -> list[Run]:
        """Returns the runs of an operator's template, for ``segment_lengths``."""
        runs = self._runs.get(operator.name)
        if runs is None:
            nodes = (self.plan.templates[index] for index in operator.template)
            runs = self._runs[operator.name] = [_run(node) for node in nodes]
        return runs


def stages_to_go(operators: Iterable[PlanOperator]) -> dict[str, int]:
    """Per operator, the operators on the longest chain that reads it; O(operators + reads).

    Operators of other engines do not count; those that wait for each other, which no planner sends,
    have a number all the same.
    """
    reads = {operator.name: set(operator.reads) for operator in operators}
    num_readers = Counter(name for names in reads.values() for name in names)
    stages = dict.fromkeys(reads, 0)
    ready = [name for name in reads if not num_readers[name]]
    while ready:
        reader = ready.pop()
        for name in reads[reader]:
            num_readers[name] -= 1
            if name not in stages:
                continue
            stages[name] = max(stages[name], stages[reader] + 1)
            if not num_readers[name]:
                ready.append(name)
    return stages


def _run(node: TemplateNode) -> Run:
    if node.token_ids is not None:
        return array("i", node.token_ids).tobytes()
    is_join = 0 < node.num_tokens == node.num_join_tokens
    return VariableRun("", None if is_join else _SOME_VALUE, node.num_join_tokens)


_SOME_VALUE = Value("", "", False)


class PlanRegistry:
    """Plans by digest; every operation is O(1) but for what it evicts.

    Args:
        on_drop: Told the digest of every plan that goes, asked for or not.
    """

    def __init__(
        self, max_plans: int, max_bytes: int, on_drop: Callable[[str], object] = lambda _: None
    ) -> None:
        self._max_plans = max_plans
        self._max_bytes = max_bytes
        self._on_drop = on_drop
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
        stages = stages_to_go(plan.operators)
        entry = RegisteredPlan(plan, operators, len(plan.to_json()), stages)
        self._plans[digest] = entry
        self.num_bytes += entry.num_bytes
        while len(self._plans) > 1 and (
            len(self._plans) > self._max_plans or self.num_bytes > self._max_bytes
        ):
            self.drop(next(iter(self._plans)))
        return digest

    def drop(self, digest: str) -> bool:
        """Forgets a plan; returns whether it was known."""
        entry = self._plans.pop(digest, None)
        if entry is None:
            return False
        self.num_bytes -= entry.num_bytes
        self._on_drop(digest)
        return True

    def resolve(self, context: WorkflowContext) -> PlanOperator | None:
        """Returns the operator a context names, or ``None`` where plan or operator is unknown."""
        entry = self._plans.get(context.plan)
        if entry is None:
            return None
        self._plans.move_to_end(context.plan)
        return entry.operators.get(context.operator)

    def stages_to_go(self, context: WorkflowContext) -> int:
        """Calls on the longest chain that waits for a call of a known plan and operator."""
        return self._plans[context.plan].stages_to_go[context.operator]

    def plan(self, digest: str) -> EnginePlan:
        """Returns a known plan."""
        return self._plans[digest].plan

    def cut(self, context: WorkflowContext, prompt: Sequence[int]) -> WorkflowContext:
        """Returns the context with its prompt cut at the borders of its template's nodes.

        Lengths the caller sent are kept where they fit the prompt; a prompt that does not fit its
        template (it drifted, or the plan holds no tokens) stays uncut.

        Args:
            context: Of a known plan and operator.
        """
        entry = self._plans[context.plan]
        operator = entry.operators[context.operator]
        lengths = context.segment_lengths
        if lengths and len(lengths) == len(operator.template) and sum(lengths) <= len(prompt):
            return context
        lengths = segment_lengths(entry.runs(operator), prompt) if operator.template else ()
        return msgspec.structs.replace(context, segment_lengths=lengths)

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
