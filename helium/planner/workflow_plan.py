"""What the planner returns: placement, soft schedule, predictions, messages for the engines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.planner.engine_message import build_engine_plan
from helium.planner.lowering import Lowering
from helium.planner.prediction import Prediction
from helium.protocol import EnginePlan
from helium.templates.rendering import Run
from helium.templates.segments import segment_lengths
from helium.templates.tree import StaticPrefix


class CallPlace(NamedTuple):
    """Where and when one call runs: its engine and its position in that engine's soft schedule."""

    engine: int
    rank: int


class NestedSequence(NamedTuple):
    """Operators that one engine runs query by query; sequences follow each other.

    Attributes:
        engine: Among the engines of the first slice.
        rank: Rank of its first call.
    """

    operators: tuple[str, ...]
    engine: int
    rank: int


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
        left_over: Those of the rows that equal slices leave over, on all engines. Without any, some
            slices have a row more.
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
    sequences: tuple[NestedSequence, ...]
    left_over: tuple[NestedSequence, ...]
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

    def explain(self, format: str = "text", **options: Any) -> str:
        """Explains the plan: what the rules did, what is shared, what runs when and why.

        Args:
            format: ``text``, ``json``, ``dot`` or ``html``.
            options: Those of ``helium.explain.explain``; ``analyze`` puts measured figures beside
                the predicted ones.
        """
        from helium.explain import explain

        return explain(self, format, **options)

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

    def segment_lengths(self, operator: str, prompt: Sequence[int]) -> tuple[int, ...]:
        """Returns the ``WorkflowContext.segment_lengths`` of a call; empty if it does not fit.

        Args:
            prompt: Token ids of the call's whole prompt.

        Raises:
            PlanError: The operator is none of the plan's LLM operators.
        """
        tree = self.lowering.tree
        if operator not in tree.leaves:
            raise PlanError(
                f"plan: operator {operator!r} is not planned; planned: {list(tree.leaves)[:20]}"
            )
        if operator not in self._runs:
            path = tree.path(tree.leaves[operator])
            self._runs[operator] = tuple(tree.runs[node] for node in path)
        return segment_lengths(self._runs[operator], prompt)

    def engine_calls(self, engine: int) -> Mapping[str, int]:
        """Returns the calls per operator on an engine; operators without any are left out."""
        return self._engine_calls[engine]

    def engine_plan(self, engine: int) -> EnginePlan:
        """Returns the message to register with an engine; linear in operators and static tokens.

        Raises:
            PlanError: There is no such engine, or the plan is too large even so.
        """
        if not 0 <= engine < self.num_engines:
            raise PlanError(
                f"plan: engine {engine} does not exist; expected 0 to {self.num_engines - 1}"
            )
        return build_engine_plan(
            self.workflow, self.lowering, self.engine_calls(engine), self._ranks[engine]
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
        if operator not in self.predictions:
            return None
        num_rows = self.compiled.rows.num_rows(operator)
        if not 0 <= row < num_rows:
            return None
        num_sliced = num_rows - self._num_left_over(operator)
        first_engine = 0
        if row < num_sliced:
            sequence, position = self._positions[operator]
            # Slice i has the rows from ceil(i * n / slices) on.
            part = row * self.num_slices // num_sliced
            first = -(-part * num_sliced // self.num_slices)
            first_engine = part * (self.num_engines // self.num_slices)
        else:
            sequence, position = self._left_over_positions[operator]
            first = num_sliced
        rank = sequence.rank + (row - first) * len(sequence.operators) + position
        return CallPlace(first_engine + sequence.engine, rank)

    def _num_left_over(self, operator: str) -> int:
        if not self.left_over:
            return 0
        return self.compiled.rows.num_rows(operator) % self.num_slices

    @cached_property
    def _runs(self) -> dict[str, tuple[Run, ...]]:
        return {}

    @cached_property
    def _positions(self) -> Mapping[str, tuple[NestedSequence, int]]:
        return _positions(self.sequences)

    @cached_property
    def _left_over_positions(self) -> Mapping[str, tuple[NestedSequence, int]]:
        return _positions(self.left_over)

    @cached_property
    def _engine_calls(self) -> tuple[dict[str, int], ...]:
        calls: tuple[dict[str, int], ...] = tuple({} for _ in range(self.num_engines))
        if self.is_by_call:
            for (name, _), place in self._calls.items():
                calls[place.engine][name] = calls[place.engine].get(name, 0) + 1
            return calls
        width = self.num_engines // self.num_slices
        for name, (sequence, _) in self._positions.items():
            for part, count in enumerate(self._calls_per_slice(name)):
                if count:
                    calls[part * width + sequence.engine][name] = count
        for name, (sequence, _) in self._left_over_positions.items():
            counts = calls[sequence.engine]
            counts[name] = counts.get(name, 0) + self._num_left_over(name)
        return calls

    def _calls_per_slice(self, name: str) -> list[int]:
        rows, num_rows = self.compiled.calls(name), self.compiled.rows.num_rows(name)
        if self.left_over:  # a plan has none unless every row is called
            return [num_rows // self.num_slices] * self.num_slices
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
            for name, (sequence, position) in self._left_over_positions.items():
                ranks[sequence.engine].setdefault(name, sequence.rank + position)
        return ranks


def _positions(
    sequences: Sequence[NestedSequence],
) -> dict[str, tuple[NestedSequence, int]]:
    return {
        name: (sequence, position)
        for sequence in sequences
        for position, name in enumerate(sequence.operators)
    }
