"""Which engines run which rows of which operators: candidates, and the choice between them.

Rows cut into slices keep what calls for the same row share on one engine, and compute what all rows
share on several; operators placed one by one do the opposite. Where the slices would not be equal,
the longest of them would hold up the run: the rows left over can be placed operator by operator.
The cost model says which placement ends first; among those about as early, the one that computes
the fewest prompt tokens wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from helium.cost.model import CostModel
from helium.planner.greedy import schedule_on_engines, schedule_on_tree
from helium.planner.lowering import Lowering
from helium.planner.problem import Problem
from helium.planner.timeline import Assignment, Timeline, simulate

EQUAL_MAKESPAN_RATIO = 0.02
"""Makespans this close are equal: the estimates are no better than that."""

MAX_OPERATORS_FOR_ALL_SLICINGS = 1_000
"""Larger workflows try the extremes only: rows uncut, and a slice per engine."""


class Placement(NamedTuple):
    """Operators on engines.

    Attributes:
        num_slices: Equal slices of the rows.
        is_uneven: Whether the problem has tasks of every slice, and of the rows left over. Without
            it the tasks are those of the first slice, and its engines those of all.
    """

    problem: Problem
    assignment: Assignment
    num_slices: int
    is_uneven: bool


def place_operators(lowering: Lowering, model: CostModel, num_engines: int) -> Placement:
    """Returns the best of the placements with equal engines for equal slices."""
    candidates = list(_candidates(lowering, model, num_engines))
    if len(candidates) == 1:
        return candidates[0][0]
    limit = min(timeline.makespan for _, timeline in candidates) * (1 + EQUAL_MAKESPAN_RATIO)
    fast = [placement for placement, timeline in candidates if timeline.makespan <= limit]
    return min(fast, key=_resident_tokens)


def best_of(problem: Problem, assignments: list[Assignment]) -> tuple[Assignment, Timeline]:
    """Returns the first of the shortest schedules."""
    timelines = [simulate(problem, assignment) for assignment in assignments]
    best = min(range(len(timelines)), key=lambda i: (timelines[i].makespan, i))
    return assignments[best], timelines[best]


def _candidates(
    lowering: Lowering, model: CostModel, num_engines: int
) -> Iterator[tuple[Placement, Timeline]]:
    """Yields placements, those with fewer slices first."""
    most_rows = max(lowering.num_calls.values())
    slicings = [k for k in range(1, num_engines + 1) if not num_engines % k and k <= most_rows]
    if len(lowering.operators) > MAX_OPERATORS_FOR_ALL_SLICINGS:
        slicings = sorted({slicings[0], slicings[-1]})
    for num_slices in slicings:
        problem = lowering.operator_problem(model, num_engines // num_slices, num_slices)
        placed = schedule_on_engines(problem)
        on_tree = schedule_on_tree(problem, placed.engines)
        assignment, timeline = best_of(problem, [placed, on_tree])
        yield Placement(problem, assignment, num_slices, False), timeline
        if lowering.leaves_rows_over(num_slices):
            uneven = lowering.uneven_problem(model, num_engines, num_slices)
            fixed = _engines_of_slices(uneven, problem, assignment, num_slices)
            assignment = schedule_on_engines(uneven, fixed)
            timeline = simulate(uneven, assignment)
            yield Placement(uneven, assignment, num_slices, True), timeline


def _engines_of_slices(
    uneven: Problem, problem: Problem, assignment: Assignment, num_slices: int
) -> dict[int, int]:
    """Returns the engines of the slices' tasks, which are those of the first slice's, shifted."""
    own = {
        task.operator: engine
        for task, engine in zip(problem.tasks, assignment.engines, strict=True)
    }
    return {
        index: task.part * problem.num_engines + own[task.operator]
        for index, task in enumerate(uneven.tasks)
        if task.part < num_slices
    }


def _resident_tokens(placement: Placement) -> float:
    """Returns the prompt tokens a placement computes, if engines keep what they computed.

    Slices that differ by a row all count as the longest: the engine that has it is the one that
    the run waits for.
    """
    tokens = placement.problem.resident_tokens(placement.assignment.engines)
    return tokens if placement.is_uneven else tokens * placement.num_slices
