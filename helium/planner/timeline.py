"""When every task of a schedule runs, under the problem's cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helium.planner.problem import Problem


@dataclass(slots=True)
class Assignment:
    """A schedule: an order of all tasks, producers first, and an engine for each.

    An engine runs its tasks in this order. Any topological order with any engines is feasible.

    Attributes:
        order: Tasks, [num_tasks].
        engines: Engine by task, [num_tasks].
    """

    order: list[int]
    engines: list[int]


@dataclass(slots=True)
class Timeline:
    """The outcome of an assignment; times in the cost model's unit.

    Attributes:
        makespan: When the last task ends.
        total_usage: Busy time of all engines together.
        starts, ends: By task, [num_tasks].
        previous: Task before it on its engine, or -1, [num_tasks].
        blockers: What held its start: a producer, the previous task on the engine, or -1.
    """

    makespan: float
    total_usage: float
    starts: list[float]
    ends: list[float]
    previous: list[int]
    blockers: list[int]

    def critical_path(self) -> list[int]:
        """Returns the chain of tasks that ends at the makespan, each held by the one before."""
        if not self.ends:
            return []
        task = max(range(len(self.ends)), key=self.ends.__getitem__)
        path = []
        while task >= 0:
            path.append(task)
            task = self.blockers[task]
        path.reverse()
        return path


def simulate(problem: Problem, assignment: Assignment) -> Timeline:
    """Runs an assignment through the cost model; linear in tasks and dependencies."""
    n = problem.num_tasks
    evaluator = Evaluator(problem)
    makespan, total = evaluator.evaluate(assignment.order, assignment.engines)
    last = [-1] * problem.num_engines
    clocks = [0.0] * problem.num_engines
    previous = [-1] * n
    blockers = [-1] * n
    for task in assignment.order:
        engine = assignment.engines[task]
        before = previous[task] = last[engine]
        start, usage = evaluator.starts[task], problem.usage(before, task)
        waited = start > clocks[engine] or evaluator.ends[task] > start + usage
        blockers[task] = _latest_producer(problem, evaluator, task) if waited else before
        last[engine], clocks[engine] = task, start + usage
    return Timeline(makespan, total, evaluator.starts, evaluator.ends, previous, blockers)


class Evaluator:
    """Evaluates assignments fast; remembers the last one to evaluate changes of its tail.

    Attributes:
        starts, ends: Of the tasks in the last evaluation, [num_tasks].
        num_evaluated: Tasks evaluated so far: a measure of work that no clock disturbs.
    """

    def __init__(self, problem: Problem) -> None:
        n = problem.num_tasks
        self._problem = problem
        self._firsts = [0.0] * n
        self.starts = [0.0] * n
        self.ends = [0.0] * n
        self.num_evaluated = 0
        start = ((0.0,) * problem.num_engines, (-1,) * problem.num_engines, 0.0, 0.0)
        self._states: list[tuple[tuple[float, ...], tuple[int, ...], float, float]] = [start]
        self._states += [start] * n

    def evaluate(
        self, order: Sequence[int], engines: Sequence[int], start: int = 0
    ) -> tuple[float, float]:
        """Returns makespan and total usage.

        Args:
            start: Positions before it are as in the last evaluation and are not looked at again.
        """
        problem = self._problem
        calls, delays, producers = problem.calls, problem.delays, problem.producers
        starts, ends, firsts, states = self.starts, self.ends, self._firsts, self._states
        usages, usage_of, n = problem._usages, problem.usage, len(calls)
        clocks_before, last_before, makespan, total = states[start]
        clocks, last = list(clocks_before), list(last_before)
        for position in range(start, n):
            states[position] = (tuple(clocks), tuple(last), makespan, total)
            task = order[position]
            engine = engines[task]
            before = last[engine]
            usage = usages.get(before * n + task)
            if usage is None:
                usage = usage_of(before, task)
            begin = clocks[engine]
            num_calls = calls[task]
            end = 0.0
            for producer in producers[task]:
                if num_calls > 1 and calls[producer] > 1:  # row by row
                    ready = firsts[producer] + delays[producer]
                    stretched = ends[producer] + delays[producer] + usage / num_calls
                    if stretched > end:
                        end = stretched
                else:
                    ready = ends[producer] + delays[producer]
                if ready > begin:
                    begin = ready
            clocks[engine] = begin + usage  # rows it still waits for leave the engine to others
            if begin + usage > end:
                end = begin + usage
            starts[task] = begin
            firsts[task] = begin + usage / num_calls
            ends[task] = end
            last[engine] = task
            total += usage
            if end > makespan:
                makespan = end
        states[n] = (tuple(clocks), tuple(last), makespan, total)
        self.num_evaluated += n - start
        return makespan, total


def _latest_producer(problem: Problem, evaluator: Evaluator, task: int) -> int:
    ends, delays = evaluator.ends, problem.delays
    return max(problem.producers[task], key=lambda producer: ends[producer] + delays[producer])
