"""What the cost model expects of each operator in a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from helium.planner.problem import Problem
from helium.planner.timeline import Timeline


class Prediction(NamedTuple):
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
        calls = num_calls[task.operator] if num_slices > 1 else task.num_calls
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
