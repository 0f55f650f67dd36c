"""Which calls of a run are still to come, and what they will read from the prefix cache.

For every template node of a plan, and per row below the first node that depends on the row, the
index holds a tag. This module keeps each tag's number of pending calls and the rank of the nearest
one, and counts them down as calls end.

Source: Helium, §5 (next use from the soft schedule); counting per row inside the engine is ours.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from helium.protocol import EnginePlan, WorkflowContext
from vllm_helium.prefix_cache.index import NO_TAG, PrefixIndex

Segments = list[tuple[int, int]]
"""``(end, tag)``: the request's tokens before ``end`` and after the last one belong to ``tag``."""

NO_PLAN = -1
ALL_ROWS = -1
TO_THE_END = (1 << 31) - 1
_MAX_RANK = (1 << 32) - 1
_MAX_INT = (1 << 31) - 1
"""Largest count and row of the index; a plan may name larger ones, which count as this one."""


class PlanUses:
    """Pending uses of one run of one plan; once ``is_closed``, its tags are gone.

    Every operator is expected to be called once per row; an operator's ``num_calls`` bounds what
    nodes shared by all rows wait for. More calls than that are served as if they were the last.
    """

    def __init__(self, index: PrefixIndex, plan_id: int, plan: EnginePlan) -> None:
        self._index = index
        self.plan_id = plan_id
        self._templates = plan.templates
        self._operators = {operator.name: operator for operator in plan.operators}
        self._remaining = {operator.name: operator.num_calls for operator in plan.operators}
        self._num_remaining = sum(self._remaining.values())
        self._is_static = [True] * len(plan.templates)
        for node, template in enumerate(plan.templates[1:], start=1):
            self._is_static[node] = (
                self._is_static[template.parent] and template.token_ids is not None
            )
        self._readers: list[list[str]] = [[] for _ in plan.templates]
        for operator in sorted(plan.operators, key=lambda operator: operator.rank):
            for node in operator.template:
                self._readers[node].append(operator.name)
        self._pending = [
            sum(self._remaining[name] for name in readers) for readers in self._readers
        ]
        self._next_reader = [0] * len(plan.templates)
        self._row_readers: dict[tuple[int, int], set[str]] = {}
        self._ended: set[tuple[str, int]] = set()
        self._known_static: set[int] = set()
        self.is_closed = False
        self._continuations = self._find_continuations()

    def _find_continuations(self) -> dict[int, int]:
        """Per leaf, the one row-dependent node below it: where a later call reads its output."""
        dynamic: dict[int, list[int]] = {}
        for node, template in enumerate(self._templates[1:], start=1):
            if template.token_ids is None and self._readers[node]:
                dynamic.setdefault(template.parent, []).append(node)
        return {parent: nodes[0] for parent, nodes in dynamic.items() if len(nodes) == 1}

    @property
    def is_over(self) -> bool:
        """Whether every expected call has ended."""
        return self._num_remaining <= 0

    def segments(self, context: WorkflowContext) -> tuple[Segments, int]:
        """Cuts a request's tokens at its template's nodes; makes the tags on first sight.

        Returns:
            The segments, output included, and the number of leading tokens the plan says are
            static. Empty where the operator is unknown or the lengths do not fit its template.
        """
        operator = self._operators.get(context.operator)
        lengths = context.segment_lengths
        if operator is None or not lengths or len(lengths) != len(operator.template):
            return [], 0
        row = min(context.row, _MAX_INT)
        segments: Segments = []
        end = num_static_tokens = 0
        for node, length in zip(operator.template, lengths, strict=True):
            end += length
            segments.append((end, self._tag(node, row)))
            if self._is_static[node]:
                num_static_tokens = end
        leaf = operator.template[-1]
        output = self._continuations.get(leaf, leaf)
        segments.append((TO_THE_END, self._tag(output, row)))
        return segments, num_static_tokens

    def call_ended(self, context: WorkflowContext) -> None:
        """Counts a call down, finished or aborted; O(length of the template path)."""
        operator = self._operators.get(context.operator)
        if operator is None or self._remaining[operator.name] <= 0:
            return
        self._remaining[operator.name] -= 1
        self._num_remaining -= 1
        row = min(context.row, _MAX_INT)
        self._ended.add((operator.name, row))
        for node in operator.template:
            self._pending[node] -= 1
            if not self._is_static[node]:
                readers = self._row_readers.get((node, row))
                if readers is not None:
                    readers.discard(operator.name)
            self._update(node, row)

    def tag_of(self, node: int, row: int) -> int:
        """Tag of a template node (of all rows where it is static), to lease its blocks."""
        return self._tag(node, min(row, _MAX_INT))

    def _tag(self, node: int, row: int) -> int:
        if self._is_static[node]:
            if node not in self._known_static:
                self._known_static.add(node)
                self._update(node, row)
            return self._index.tag(self.plan_id, node, ALL_ROWS)
        if (node, row) not in self._row_readers:
            self._row_readers[node, row] = {
                name
                for name in self._readers[node]
                if self._remaining[name] > 0 and (name, row) not in self._ended
            }
            self._update(node, row)
        return self._index.tag(self.plan_id, node, row)

    def _update(self, node: int, row: int) -> None:
        if self._is_static[node]:
            readers = self._readers[node]
            position = self._next_reader[node]
            while position < len(readers) and self._remaining[readers[position]] <= 0:
                position += 1
            self._next_reader[node] = position
            num_uses = self._pending[node]
            rank = self._operators[readers[position]].rank if position < len(readers) else 0
            tag = self._index.tag(self.plan_id, node, ALL_ROWS)
        else:
            pending = self._row_readers.get((node, row), ())
            num_uses = len(pending)
            rank = min((self._operators[name].rank for name in pending), default=0)
            tag = self._index.tag(self.plan_id, node, row)
        self._index.set_uses(tag, min(num_uses, _MAX_INT), min(rank, _MAX_RANK))


class PlanUsesRegistry:
    """Pending uses of all runs, by plan digest and run id; the oldest run goes first.

    Args:
        plan_ids: Where runs get their numbers in the index.
        on_last_run: Told the digest of a plan whose last open run has ended.
    """

    def __init__(
        self,
        index: PrefixIndex,
        max_runs: int,
        plan_ids: Iterator[int] | None = None,
        on_last_run: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._index = index
        self._max_runs = max_runs
        self._plan_ids = itertools.count() if plan_ids is None else plan_ids
        self._on_last_run = on_last_run
        self._num_open: Counter[str] = Counter()
        self._plans: OrderedDict[str, EnginePlan] = OrderedDict()
        self._runs: OrderedDict[tuple[str, str], PlanUses] = OrderedDict()
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    def register(self, digest: str, plan: EnginePlan) -> None:
        """Makes a plan known; its runs begin with their first request.

        As many plans as runs are kept; beyond it the one registered longest ago is dropped.
        """
        self._plans[digest] = plan
        self._plans.move_to_end(digest)
        if len(self._plans) > self._max_runs:
            self.drop(next(iter(self._plans)))

    def drop(self, digest: str) -> None:
        """Forgets a plan and its runs; their blocks become dead, or ordinary where shared."""
        if self._plans.pop(digest, None) is None:
            return
        for key in [key for key in self._runs if key[0] == digest]:
            self._close(key)
        for key in [key for key in self._ended if key[0] == digest]:
            del self._ended[key]

    def finish_run(self, digest: str, run: str) -> None:
        """Ends a run: nothing more of it is to come, whatever the plan expected."""
        if (digest, run) in self._runs:
            self._close((digest, run))

    def run(self, context: WorkflowContext | None) -> PlanUses | None:
        """Pending uses of a request's run, or ``None`` for ordinary traffic and ended runs."""
        if context is None:
            return None
        key = (context.plan, context.run)
        known = self._runs.get(key)
        plan = self._plans.get(context.plan)
        if known is not None or plan is None or key in self._ended:
            return known
        if len(self._runs) >= self._max_runs:
            self._close(next(iter(self._runs)))
        uses = self._runs[key] = PlanUses(self._index, next(self._plan_ids), plan)
        self._num_open[context.plan] += 1
        return uses

    def call_ended(self, context: WorkflowContext | None) -> None:
        """Counts down a call that will not come again; ends the run with its last call."""
        uses = self.run(context)
        if uses is None or context is None:
            return
        uses.call_ended(context)
        if uses.is_over:
            self._close((context.plan, context.run))

    def _close(self, key: tuple[str, str]) -> None:
        uses = self._runs.pop(key)
        uses.is_closed = True
        self._index.close_plan(uses.plan_id)
        self._num_open[key[0]] -= 1
        if not self._num_open[key[0]]:
            del self._num_open[key[0]]
            self._on_last_run(key[0])
        # An ended run stays known for a while, so that a late call does not begin it anew.
        self._ended[key] = None
        if len(self._ended) > self._max_runs:
            self._ended.popitem(last=False)

    def describe(self) -> dict[str, int]:
        """Counts for the status report."""
        return {"num_plans": len(self._plans), "num_runs": len(self._runs)}


__all__ = ["NO_PLAN", "NO_TAG", "PlanUses", "PlanUsesRegistry", "Segments"]
