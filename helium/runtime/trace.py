"""What happened in a run and when: measured figures by operator, critical path, a Perfetto trace.

A ``RunTrace`` listens to a run's events and stamps them. It keeps one small record per call, so it
is made only where somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from helium.errors import PlanError
from helium.explain.report import Measured
from helium.plan.compiled_plan import CompiledPlan
from helium.planner.workflow_plan import WorkflowPlan
from helium.runtime.chrome_trace import chrome_trace
from helium.runtime.events import (
    CallFinished,
    CallStarted,
    Event,
    FunctionFinished,
    RowFailed,
    RunFinished,
    RunStarted,
)

if TYPE_CHECKING:
    from helium.runtime.run import Run

Cell = tuple[str, int]


class Span(NamedTuple):
    """A call or function of one row; times in seconds since the run started.

    Attributes:
        engine: Where it ran; -1 for a function, and for a call that somebody else's answered.
        origin: That of ``CallFinished``, ``function``, or ``failed``.
        start_s: When it was given to its engine; its end where that is not known.
        queue_ms: As the engine reports it, 0 where it does not.
        misses: Why prompt tokens were not in the cache, as the engine reports it: reason -> tokens.
        note: Why it failed, for ``failed``.
    """

    operator: str
    row: int
    engine: int
    origin: str
    start_s: float
    end_s: float
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    queue_ms: float = 0.0
    misses: Mapping[str, int] = {}
    note: str = ""


class RunTrace:
    """Listens to one run: ``follow`` it, or give ``observe`` to it as a listener.

    Attributes:
        run: Id of the run.
        status: As in ``RunFinished``; ``running`` before.
        started_at: Unix time of the first event, in seconds.
        elapsed_s: From the first event to the last.
        spans: In the order they ended.
        schedule: The plan of the run, where there was one; ``follow`` sets it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Waits for events.

        Args:
            clock: Tells seconds from any origin.
        """
        self.run = ""
        self.status = "running"
        self.started_at = 0.0
        self.elapsed_s = 0.0
        self.spans: list[Span] = []
        self.schedule: WorkflowPlan | None = None
        self._clock = clock
        self._start: float | None = None
        self._sent: dict[Cell, tuple[float, int]] = {}

    def follow(self, run: Run) -> None:
        """Listens to a run that was just submitted or resumed."""
        self.schedule = run.schedule
        run.listen(self.observe)

    def explain(self, format: str = "text") -> str:
        """Returns EXPLAIN ANALYZE: what was predicted of the run beside what it measured.

        Raises:
            PlanError: The format is unknown, or the run had no plan.
        """
        if self.schedule is None:
            raise PlanError("explain: the run had no plan; it made no calls, or Helium was off")
        return self.schedule.explain(format, analyze=self)

    def observe(self, event: Event) -> None:
        """Takes note of an event, at the time it is told."""
        now = self._clock()
        if self._start is None:
            self._start, self.started_at = now, time.time()
        now -= self._start
        self.elapsed_s = now
        match event:
            case RunStarted():
                self.run = event.run
            case CallStarted():
                self._sent[event.operator, event.row] = now, event.engine
            case CallFinished():
                start_s, engine = self._sent.pop((event.operator, event.row), (now, -1))
                self.spans.append(
                    Span(
                        event.operator,
                        event.row,
                        engine,
                        event.origin,
                        start_s,
                        now,
                        event.num_prompt_tokens,
                        event.num_cached_tokens,
                        event.num_output_tokens,
                        event.queue_ms,
                        event.misses,
                    )
                )
            case FunctionFinished():
                self.spans.append(Span(event.operator, event.row, -1, "function", now, now))
            case RowFailed():
                start_s, engine = self._sent.pop((event.operator, event.row), (now, -1))
                span = Span(event.operator, event.row, engine, "failed", start_s, now)
                self.spans.append(span._replace(note=event.reason))
            case RunFinished():
                self.status = event.status

    def measured(self) -> dict[str, Measured]:
        """Returns the figures of every LLM operator whose calls an engine answered."""
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            if span.origin == "engine":
                found.setdefault(span.operator, []).append(span)
        return {operator: _sum(spans) for operator, spans in found.items()}

    def critical_cells(self, compiled: CompiledPlan) -> list[Cell]:
        """Returns the chain of calls and functions that ended last, each held by the one before.

        A row is held by the row it reads, directly or through formats and slices, that ended last.

        Args:
            compiled: The plan that was run.
        """
        spans = {(s.operator, s.row): s for s in self.spans if s.origin != "failed"}
        if not spans:
            return []
        cell = max(spans, key=lambda cell: spans[cell].end_s)
        path = [cell]
        while (before := _latest(cell, compiled, spans)) is not None:
            path.append(before)
            cell = before
        path.reverse()
        return path

    def critical_path(self, compiled: CompiledPlan) -> tuple[str, ...]:
        """Returns the operators of ``critical_cells``."""
        return tuple(name for name, _ in groupby(name for name, _ in self.critical_cells(compiled)))

    def to_chrome(self) -> dict[str, Any]:
        """Returns the trace in Chrome's format, for Perfetto (ui.perfetto.dev).

        Where the run had a plan, the critical path is drawn as a flow.
        """
        if self.schedule is None:
            return chrome_trace(self)
        return chrome_trace(self, self.critical_cells(self.schedule.compiled))


def _sum(spans: list[Span]) -> Measured:
    misses: dict[str, int] = {}
    for span in spans:
        for reason, num_tokens in span.misses.items():
            misses[reason] = misses.get(reason, 0) + num_tokens
    cached = sum(span.num_cached_tokens for span in spans)
    return Measured(
        num_calls=len(spans),
        prefill_tokens=sum(span.num_prompt_tokens for span in spans) - cached,
        cached_tokens=cached,
        output_tokens=sum(span.num_output_tokens for span in spans),
        queue_ms=sum(span.queue_ms for span in spans),
        start_ms=1e3 * min(span.start_s for span in spans),
        end_ms=1e3 * max(span.end_s for span in spans),
        misses=dict(sorted(misses.items())),
    )


def _latest(cell: Cell, compiled: CompiledPlan, spans: Mapping[Cell, Span]) -> Cell | None:
    """Returns the cell with a span that ``cell`` had to wait for longest."""
    rows = compiled.rows
    pending = list(rows.dependencies(*cell))
    seen: set[Cell] = set()
    latest: Cell | None = None
    while pending:
        name, row = pending.pop()
        alike = compiled.representatives.get(name)
        found = (name, row if alike is None else alike[row])
        if found in seen:
            continue
        seen.add(found)
        if found not in spans:
            pending += rows.dependencies(*found)
        elif latest is None or spans[found].end_s > spans[latest].end_s:
            latest = found
    return latest
