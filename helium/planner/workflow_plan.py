"""What the planner returns: placement, soft schedule, predictions, messages for the engines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.planner.lowering import Lowering
from helium.planner.problem import Problem
from helium.planner.timeline import Timeline
from helium.protocol import (
    MAX_PLAN_BYTES,
    PROTOCOL_VERSION,
    EnginePlan,
    PlanOperator,
    TemplateNode,
)
from helium.templates.rendering import token_ids
from helium.templates.tree import StaticPrefix


class CallPlace(NamedTuple):
    """Where and when one call runs: its engine and its position in that engine's soft schedule."""

    engine: int
    rank: int


class Sequence(NamedTuple):
    """Operators that one engine runs query by query; sequences follow each other.

    Attributes:
        engine: Among the engines of the first slice.
        rank: Rank of its first call.
    """

    operators: tuple[str, ...]
    engine: int
    rank: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model expects of an operator; tokens over all its calls, times of its first
    slice of rows, in the model's unit.

    Attributes:
        prefill_tokens: Prompt tokens to compute.
        cached_tokens: Prompt tokens shared with the call just before on the same engine.
        output_tokens: Tokens to generate.
        delay: From ``end`` until readers of its last row may start.
        blocker: The operator whose end held this one, or ``None``.
    """

    operator: str
    num_calls: int
    prefill_tokens: float
    cached_tokens: float
    output_tokens: float
    start: float
    end: float
    delay: float
    blocker: str | None
    is_critical: bool


@dataclass(frozen=True)
class WorkflowPlan:
    """A planned workflow; immutable, and the same bytes for the same arguments in every process.

    Attributes:
        workflow: Its name.
        policy: Who made the schedule: ``helium`` or the name of a baseline.
        num_engines: Engines planned for.
        num_slices: Slices the rows are cut into; each runs on ``num_engines / num_slices`` engines
            of its own, all on the same schedule.
        is_by_call: Whether single calls were scheduled instead of whole operators.
        sequences: The nested sequences of the first slice's engines; one operator each where single
            calls were scheduled.
        makespan: Predicted, in ``unit``.
        predictions: By operator, in order of their start.
        critical_path: Operators of the chain that ends last, each held by the one before.
        lowering: The bound plan, its tree and its expected lengths.
    """

    workflow: str
    policy: str
    num_engines: int
    num_slices: int
    is_by_call: bool
    sequences: tuple[Sequence, ...]
    makespan: float
    unit: str
    predictions: Mapping[str, Prediction]
    critical_path: tuple[str, ...]
    lowering: Lowering
    _calls: Mapping[tuple[str, int], CallPlace]

    @property
    def compiled(self) -> CompiledPlan:
        """The bound plan this is the schedule of."""
        return self.lowering.compiled

    def place(self, operator: str, row: int) -> CallPlace:
        """Returns where a call runs and its rank there. Constant time.

        Raises:
            PlanError: The operator is none of the plan's LLM operators, or has no such row.
        """
        if self.is_by_call:
            place = self._calls.get((operator, row))
        else:
            place = self._place_in_sequence(operator, row)
        if place is None:
            raise PlanError(
                f"plan: no call of operator {operator!r} for row {row} is planned; planned "
                f"operators: {list(self.predictions)[:20]}"
            )
        return place

    def engine_calls(self, engine: int) -> Mapping[str, int]:
        """Returns the calls per operator on an engine; operators without any are left out."""
        return self._engine_calls[engine]

    def engine_plan(self, engine: int) -> EnginePlan:
        """Returns the message to register with an engine; linear in operators and static tokens.

        Where the message would be larger than the engine takes, static tokens that a single call
        reads are left out, then all.

        Raises:
            PlanError: There is no such engine, or the plan is too large even so.
        """
        if not 0 <= engine < self.num_engines:
            raise PlanError(
                f"plan: engine {engine} does not exist; expected 0 to {self.num_engines - 1}"
            )
        everything: Callable[[int], bool] = lambda uses: True  # noqa: E731
        for keep_tokens in (everything, lambda uses: uses > 1, lambda uses: False):
            plan = self._engine_plan(engine, keep_tokens)
            if len(plan.to_json()) <= MAX_PLAN_BYTES:
                return plan
        raise PlanError(
            f"plan: {len(plan.operators)} operators take {len(plan.to_json())} bytes, an engine "
            f"takes {MAX_PLAN_BYTES}; split the workflow or pass repeated work as rows"
        )

    def engine_plans(self) -> tuple[EnginePlan, ...]:
        """Returns the message for every engine, [num_engines]."""
        return tuple(self.engine_plan(engine) for engine in range(self.num_engines))

    def next_uses(self, engine: int) -> Mapping[int, tuple[int, ...]]:
        """Returns when each tree node is read on an engine: ranks of the operators that do, rising.

        Node numbers are those of ``lowering.tree``.
        """
        tree = self.lowering.tree
        uses: dict[int, list[int]] = {}
        for name in self.engine_calls(engine):
            for node in tree.path(tree.leaves[name]):
                uses.setdefault(node, []).append(self._ranks[engine][name])
        return {node: tuple(sorted(ranks)) for node, ranks in uses.items()}

    def static_prefixes(self, engine: int, min_uses: int = 2) -> list[StaticPrefix]:
        """Returns what to prewarm on an engine, most valuable first."""
        calls = self.engine_calls(engine)
        tree = self.lowering.tree
        return tree.static_prefixes(tree.num_uses(lambda name: calls.get(name, 0)), min_uses)

    def _place_in_sequence(self, operator: str, row: int) -> CallPlace | None:
        found = self._positions.get(operator)
        num_rows = self.compiled.rows.num_rows(operator) if found else 0
        if found is None or not 0 <= row < num_rows:
            return None
        sequence, position = found
        # Slice i has the rows from ceil(i * n / slices) on.
        part = row * self.num_slices // num_rows
        first = -(-part * num_rows // self.num_slices)
        engine = part * (self.num_engines // self.num_slices) + sequence.engine
        rank = sequence.rank + (row - first) * len(sequence.operators) + position
        return CallPlace(engine, rank)

    @cached_property
    def _positions(self) -> Mapping[str, tuple[Sequence, int]]:
        return {
            name: (sequence, position)
            for sequence in self.sequences
            for position, name in enumerate(sequence.operators)
        }

    @cached_property
    def _engine_calls(self) -> tuple[dict[str, int], ...]:
        calls: tuple[dict[str, int], ...] = tuple({} for _ in range(self.num_engines))
        if self.is_by_call:
            for (name, _), place in self._calls.items():
                calls[place.engine][name] = calls[place.engine].get(name, 0) + 1
            return calls
        width = self.num_engines // self.num_slices
        for name, (sequence, _) in self._positions.items():
            counts = self._calls_per_slice(name)
            for part, count in enumerate(counts):
                if count:
                    calls[part * width + sequence.engine][name] = count
        return calls

    def _calls_per_slice(self, name: str) -> list[int]:
        rows, num_rows = self.compiled.calls(name), self.compiled.rows.num_rows(name)
        starts = [-(-part * num_rows // self.num_slices) for part in range(self.num_slices + 1)]
        if len(rows) == num_rows:
            return [stop - start for start, stop in pairwise(starts)]
        return [
            bisect_left(rows, stop) - bisect_left(rows, start) for start, stop in pairwise(starts)
        ]

    @cached_property
    def _ranks(self) -> tuple[dict[str, int], ...]:
        ranks: tuple[dict[str, int], ...] = tuple({} for _ in range(self.num_engines))
        for (name, _), place in self._calls.items():
            known = ranks[place.engine].get(name, place.rank)
            ranks[place.engine][name] = min(known, place.rank)
        if not self.is_by_call:
            width = self.num_engines // self.num_slices
            for name, (sequence, position) in self._positions.items():
                for engine in range(sequence.engine, self.num_engines, width):
                    ranks[engine][name] = sequence.rank + position
        return ranks

    def _engine_plan(self, engine: int, keep_tokens: Callable[[int], bool]) -> EnginePlan:
        lowering, tree = self.lowering, self.lowering.tree
        calls, ranks = self.engine_calls(engine), self._ranks[engine]
        uses = tree.num_uses(lambda name: calls.get(name, 0))
        tokens = lowering.prefixes.tokens
        numbers = {0: 0}
        nodes = [TemplateNode(parent=0)]
        for node in tree.preorder():
            if not node or not uses[node]:
                continue
            parent, run = tree.parents[node], tree.runs[node]
            is_kept = isinstance(run, bytes) and keep_tokens(uses[node])
            numbers[node] = len(nodes)
            nodes.append(
                TemplateNode(
                    parent=numbers[parent],
                    num_tokens=round(tokens[node] - tokens[parent]),
                    token_ids=tuple(token_ids(run)) if is_kept and isinstance(run, bytes) else None,
                    num_uses=uses[node],
                )
            )
        operators = tuple(
            PlanOperator(
                name=name,
                rank=ranks[name],
                num_calls=calls[name],
                output_tokens=lowering.output_tokens[name],
                template=tuple(numbers[node] for node in tree.path(tree.leaves[name])),
                reads=tuple(read for read in lowering.reads[name] if read in calls),
            )
            for name in sorted(calls, key=lambda name: (ranks[name], name))
        )
        return EnginePlan(PROTOCOL_VERSION, self.workflow, operators, tuple(nodes))


def predict(
    problem: Problem, timeline: Timeline, num_slices: int, num_calls: Mapping[str, int]
) -> dict[str, Prediction]:
    """Sums a timeline up by operator, in order of start.

    Args:
        num_slices: Slices of rows that run on this schedule side by side.
        num_calls: Calls of each operator over all slices.
    """
    critical = {problem.tasks[task].operator for task in timeline.critical_path()}
    predictions: dict[str, Prediction] = {}
    for index in sorted(range(problem.num_tasks), key=lambda t: (timeline.starts[t], t)):
        task = problem.tasks[index]
        prompt = problem.tree.tokens[task.leaf]
        first, later = problem.cached_tokens(timeline.previous[index], index)
        calls = num_calls[task.operator] if task.num_calls > 1 or num_slices > 1 else 1
        num_first = min(num_slices, calls)
        cached = num_first * first + (calls - num_first) * later
        start, end, blocked = timeline.starts[index], timeline.ends[index], timeline.blockers[index]
        before = predictions.get(task.operator)
        predictions[task.operator] = Prediction(
            operator=task.operator,
            num_calls=calls + (before.num_calls if before else 0),
            prefill_tokens=calls * prompt - cached + (before.prefill_tokens if before else 0.0),
            cached_tokens=cached + (before.cached_tokens if before else 0.0),
            output_tokens=calls * task.output_tokens + (before.output_tokens if before else 0.0),
            start=before.start if before else start,
            end=max(end, before.end) if before else end,
            delay=problem.delays[index],
            blocker=problem.tasks[blocked].operator if blocked >= 0 else None,
            is_critical=task.operator in critical,
        )
    return predictions
