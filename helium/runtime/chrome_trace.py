"""A run in Chrome's trace format: a process per engine, tracks per operator.

Source: the Trace Event Format, which Perfetto reads. Calls of one operator that overlap get tracks
of their own, since a track's events must nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helium.runtime.trace import RunTrace, Span

_RUN = 1
"""Process of the run itself; engine ``i`` is the process ``_RUN + 1 + i``."""


def chrome_trace(trace: RunTrace, critical: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """Returns the trace as JSON-able builtins; times in microseconds since the run started.

    Args:
        critical: Cells of the critical path, drawn as a flow.
    """
    events: list[dict[str, Any]] = [_name("process_name", _RUN, 0, f"run {trace.run}")]
    events.append(
        {
            "name": trace.run,
            "cat": "run",
            "ph": "X",
            "pid": _RUN,
            "tid": 0,
            "ts": 0.0,
            "dur": 1e6 * trace.elapsed_s,
            "args": {"status": trace.status, "calls": len(trace.spans)},
        }
    )
    for engine in sorted({span.engine for span in trace.spans if span.engine >= 0}):
        events.append(_name("process_name", _RUN + 1 + engine, 0, f"engine {engine}"))
    places: dict[tuple[str, int], tuple[int, int, float, float]] = {}
    for tid, (label, spans) in enumerate(_tracks(trace.spans), start=1):
        pid = _RUN + 1 + spans[0].engine if spans[0].engine >= 0 else _RUN
        events.append(_name("thread_name", pid, tid, label))
        for span in spans:
            start, end = 1e6 * span.start_s, 1e6 * span.end_s
            places[span.operator, span.row] = pid, tid, start, end
            events.append(
                {
                    "name": f"{span.operator}[{span.row}]",
                    "cat": span.origin,
                    "ph": "X",
                    "pid": pid,
                    "tid": tid,
                    "ts": start,
                    "dur": end - start,
                    "args": _arguments(span),
                }
            )
    for index, cell in enumerate(critical):
        if cell in places and len(critical) > 1:
            pid, tid, start, end = places[cell]
            phase = "s" if index == 0 else "f" if index == len(critical) - 1 else "t"
            flow = {"name": "critical path", "cat": "critical", "id": 1, "ph": phase}
            events.append({**flow, "pid": pid, "tid": tid, "ts": (start + end) / 2, "bp": "e"})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _tracks(spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    """Puts the spans of each engine and operator on as few tracks as they need."""
    groups: dict[tuple[int, str], list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        groups.setdefault((span.engine, span.operator), []).append(span)
    tracks: list[tuple[str, list[Span]]] = []
    for (_, operator), group in groups.items():
        free: list[tuple[float, int]] = []  # when a track ends, and its number
        first = len(tracks)
        for span in group:
            if free and free[0][0] <= span.start_s:
                _, number = heappop(free)
            else:
                number = len(tracks)
                label = operator if number == first else f"{operator} ({number - first + 1})"
                tracks.append((label, []))
            tracks[number][1].append(span)
            heappush(free, (span.end_s, number))
    return tracks


def _arguments(span: Span) -> dict[str, Any]:
    if span.note:
        return {"failed": span.note}
    if span.origin != "engine":
        return {}
    return {
        "prompt_tokens": span.num_prompt_tokens,
        "cached_tokens": span.num_cached_tokens,
        "output_tokens": span.num_output_tokens,
        "queue_ms": span.queue_ms,
        **{f"missed: {reason}": num_tokens for reason, num_tokens in span.misses.items()},
    }


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
