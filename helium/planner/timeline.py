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
        calls = problem.calls
        self._problem = problem
        # Producers a task follows row by row, and those it must wait for as a whole.
        self._row_wise: list[list[int]] = []
        self._whole: list[list[int]] = []
        for task, producers in enumerate(problem.producers):
            is_vector = calls[task] > 1
            self._row_wise.append([p for p in producers if is_vector and calls[p] > 1])
            self._whole.append([p for p in producers if not (is_vector and calls[p] > 1)])
        self.starts = [0.0] * n
        self.ends = [0.0] * n
        self.num_evaluated = 0
        # When readers of the first row, and of all rows, may start.
        self._first_ready = [0.0] * n
        self._all_ready = [0.0] * n
        self._clock_after = [0.0] * n
        # Makespan and total usage before each position.
        self._makespans = [0.0] * (n + 1)
        self._totals = [0.0] * (n + 1)

    def evaluate(
        self, order: Sequence[int], engines: Sequence[int], start: int = 0
    ) -> tuple[float, float]:
        """Returns makespan and total usage.

        Args:
            start: Positions before it are as in the last evaluation and are not looked at again.
        """
        problem = self._problem
        usages, usage_of, n = problem.usages, problem.usage, len(order)
        calls, delays = problem.calls, problem.delays
        row_wise, whole = self._row_wise, self._whole
        starts, ends, clock_after = self.starts, self.ends, self._clock_after
        first_ready, all_ready = self._first_ready, self._all_ready
        makespans, totals = self._makespans, self._totals
        clocks, last = self._engines_before(order, engines, start)
        makespan, total = makespans[start], totals[start]
        for position in range(start, n):
            makespans[position] = makespan
            totals[position] = total
            task = order[position]
            engine = engines[task]
            before = last[engine]
            usage = usages.get(before * n + task)
            if usage is None:
                usage = usage_of(before, task)
            begin = clocks[engine]
            inputs_end = 0.0
            for producer in row_wise[task]:
                if first_ready[producer] > begin:
                    begin = first_ready[producer]
                if all_ready[producer] > inputs_end:
                    inputs_end = all_ready[producer]
            for producer in whole[task]:
                if all_ready[producer] > begin:
                    begin = all_ready[producer]
            clock = begin + usage  # rows it still waits for leave the engine to others
            per_call = usage / calls[task]
            end = inputs_end + per_call
            if end < clock:
                end = clock
            starts[task] = begin
            ends[task] = end
            clocks[engine] = clock_after[task] = clock
            last[engine] = task
            delay = delays[task]
            first_ready[task] = begin + per_call + delay
            all_ready[task] = end + delay
            total += usage
            if end > makespan:
                makespan = end
        makespans[n], totals[n] = makespan, total
        self.num_evaluated += n - start
        return makespan, total

    def _engines_before(
        self, order: Sequence[int], engines: Sequence[int], start: int
    ) -> tuple[list[float], list[int]]:
        """Returns clock and last task of every engine before a position."""
        num_engines = self._problem.num_engines
        clocks, last = [0.0] * num_engines, [-1] * num_engines
        num_found = 0
        for position in range(start - 1, -1, -1):
            task = order[position]
            engine = engines[task]
            if last[engine] < 0:
                last[engine], clocks[engine] = task, self._clock_after[task]
                num_found += 1
                if num_found == num_engines:
                    break
        return clocks, last


def _latest_producer(problem: Problem, evaluator: Evaluator, task: int) -> int:
    ends, delays = evaluator.ends, problem.delays
    return max(problem.producers[task], key=lambda producer: ends[producer] + delays[producer])
