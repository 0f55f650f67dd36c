"""When every task of a schedule runs, under the problem's cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

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
    makespan, total = evaluator.keep(assignment.order, assignment.engines)
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
    """Evaluates assignments fast; keeps one, of which changes are evaluated from where they begin.

    Attributes:
        starts, ends: Of the tasks in the kept assignment, [num_tasks].
    """

    def __init__(self, problem: Problem) -> None:
        n = problem.num_tasks
        calls = problem.calls
        self._problem = problem
        # Per task: producers it follows row by row, those it must wait for as a whole, its calls
        # and its delay; together, since they are looked at together, and very often.
        self._tasks: list[tuple[tuple[int, ...], tuple[int, ...], int, float]] = []
        for task, producers in enumerate(problem.producers):
            row_wise: tuple[int, ...] = ()
            whole: tuple[int, ...] = ()
            if calls[task] == 1:
                whole = producers
            elif all(calls[producer] > 1 for producer in producers):
                row_wise = producers
            else:
                row_wise = tuple(p for p in producers if calls[p] > 1)
                whole = tuple(p for p in producers if calls[p] == 1)
            self._tasks.append((row_wise, whole, calls[task], problem.delays[task]))
        self._shortest_tails: list[float] | None = None
        self.starts = [0.0] * n
        self.ends = [0.0] * n
        # When readers of the first row, and of all rows, may start; the engine's clock after it.
        self._ready: tuple[list[float], list[float], list[float]] = ([0.0] * n,) * 3
        # Makespan and total usage before each position.
        self._makespans = [0.0] * (n + 1)
        self._totals = [0.0] * (n + 1)
        self._tried: tuple[int, list[float], list[float]] = (0, [], [])
        self._tried_ready = self._ready
        self._tried_times = (self.starts, self.ends)

    def keep(self, order: Sequence[int], engines: Sequence[int]) -> tuple[float, float]:
        """Evaluates an assignment, keeps it, and returns makespan and total usage."""
        found = self.try_change(order, engines, 0)
        self.keep_change()
        return found

    def try_change(
        self,
        order: Sequence[int],
        engines: Sequence[int],
        start: int,
        limit: float = inf,
        usage_weight: float = 0.0,
    ) -> tuple[float, float]:
        """Returns makespan and total usage of a change of what is kept, without keeping it.

        Args:
            start: Positions before it are as in the kept assignment and are not looked at.
            limit: Above this makespan plus weighted total usage the answer may be infinity: the
                evaluation ends as soon as it is certain to get there.
            usage_weight: Of the total usage.
        """
        problem = self._problem
        usages, usage_of, n = problem.usages, problem.usage, len(order)
        tasks = self._tasks
        first_ready, all_ready, clock_after = (list(times) for times in self._ready)
        starts, ends = list(self.starts), list(self.ends)
        makespans: list[float] = []
        totals: list[float] = []
        clocks, last = self._engines_before(order, engines, start)
        makespan, total = self._makespans[start], self._totals[start]
        tails = self._tails() if limit < inf else problem.delays
        for task in order[start:] if start else order:
            makespans.append(makespan)
            totals.append(total)
            engine = engines[task]
            before = last[engine]
            usage = usages.get(before * n + task)
            if usage is None:
                usage = usage_of(before, task)
            row_wise, whole, num_calls, delay = tasks[task]
            begin = clocks[engine]
            inputs_end = 0.0
            for producer in row_wise:
                if first_ready[producer] > begin:
                    begin = first_ready[producer]
                if all_ready[producer] > inputs_end:
                    inputs_end = all_ready[producer]
            for producer in whole:
                if all_ready[producer] > begin:
                    begin = all_ready[producer]
            total += usage
            if begin + tails[task] + usage_weight * total > limit:
                return inf, inf
            clock = begin + usage  # rows it still waits for leave the engine to others
            per_call = usage / num_calls
            end = inputs_end + per_call
            if end < clock:
                end = clock
            starts[task] = begin
            ends[task] = end
            clocks[engine] = clock_after[task] = clock
            last[engine] = task
            first_ready[task] = begin + per_call + delay
            all_ready[task] = end + delay
            if end > makespan:
                makespan = end
        makespans.append(makespan)
        totals.append(total)
        self._tried = (start, makespans, totals)
        self._tried_ready = (first_ready, all_ready, clock_after)
        self._tried_times = (starts, ends)
        return makespan, total

    def keep_change(self) -> None:
        """Keeps the change tried last, which must have been evaluated to its end."""
        start, makespans, totals = self._tried
        self._makespans[start:] = makespans
        self._totals[start:] = totals
        self._ready = self._tried_ready
        self.starts, self.ends = self._tried_times

    def _tails(self) -> list[float]:
        """Returns, by task, a lower bound of the time from its start to the end of the run."""
        if self._shortest_tails is None:
            problem = self._problem
            tails = [0.0] * problem.num_tasks
            for index in range(problem.num_tasks - 1, -1, -1):
                task = problem.tasks[index]
                # What a call costs whose prompt is cached as far as any schedule could.
                least = problem.model.usage(0.0, problem.tree.tokens[task.leaf], task.output_tokens)
                own = longest = task.num_calls * least
                delay = problem.delays[index]
                for consumer in problem.consumers[index]:
                    is_pipelined = task.num_calls > 1 and problem.calls[consumer] > 1
                    tail = (least if is_pipelined else own) + delay + tails[consumer]
                    longest = max(longest, tail)
                # Rounded down: a bound must not exceed what the sums above come to.
                tails[index] = longest * (1 - 1e-9)
            self._shortest_tails = tails
        return self._shortest_tails

    def _engines_before(
        self, order: Sequence[int], engines: Sequence[int], start: int
    ) -> tuple[list[float], list[int]]:
        """Returns clock and last task of every engine before a position."""
        num_engines = self._problem.num_engines
        clocks, last = [0.0] * num_engines, [-1] * num_engines
        clock_after = self._ready[2]
        num_found = 0
        for position in range(start - 1, -1, -1):
            task = order[position]
            engine = engines[task]
            if last[engine] < 0:
                last[engine], clocks[engine] = task, clock_after[task]
                num_found += 1
                if num_found == num_engines:
                    break
        return clocks, last


def _latest_producer(problem: Problem, evaluator: Evaluator, task: int) -> int:
    ends, delays = evaluator.ends, problem.delays
    return max(problem.producers[task], key=lambda producer: ends[producer] + delays[producer])
