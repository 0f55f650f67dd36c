"""The optimum of small problems, proven by constraint programming.

A tool for tests and benchmarks: OR-Tools is imported when asked for and is no dependency of the
planner. A circuit per engine orders the tasks; times are intervals on the cost model's scale,
rounded to whole units of ``1 / resolution``.

Source: Helium, App. B (the integer program); the formulation by circuits is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from helium.errors import PlanError
from helium.planner.problem import Problem
from helium.planner.timeline import Assignment


@dataclass(frozen=True)
class ExactResult:
    """Outcome of the solver.

    Attributes:
        assignment: The best schedule found.
        makespan: Its makespan as the solver rounds, in the cost model's unit.
        lower_bound: No schedule is shorter than this.
        is_optimal: Whether the two meet.
    """

    assignment: Assignment
    makespan: float
    lower_bound: float
    is_optimal: bool


def solve_exactly(
    problem: Problem,
    hint: Assignment,
    *,
    timeout_s: float = 60.0,
    num_threads: int = 2,
    resolution: float = 256.0,
) -> ExactResult:
    """Searches the optimum of a problem of single calls.

    Args:
        hint: A schedule to start from.
        timeout_s: The solver stops then and reports its bound.
        resolution: Units per unit of time; all durations are rounded down to it, so that the lower
            bound is valid for the exact durations.

    Raises:
        PlanError: OR-Tools is missing, or a task stands for more than one call.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise PlanError("the exact planner needs OR-Tools; pip install ortools") from error
    if any(task.num_calls != 1 for task in problem.tasks):
        raise PlanError("the exact planner takes single calls; build the problem by calls")
    return _Program(problem, cp_model, resolution).solve(hint, timeout_s, num_threads)


class _Program:
    def __init__(self, problem: Problem, cp_model: Any, resolution: float) -> None:
        self._problem = problem
        self._cp = cp_model
        self._resolution = resolution
        self._model = model = cp_model.CpModel()
        n = problem.num_tasks
        horizon = sum(self._whole(problem.usage(-1, t) + problem.delays[t]) for t in range(n))
        self._starts = [model.new_int_var(0, horizon, f"start{t}") for t in range(n)]
        self._ends = [model.new_int_var(0, horizon, f"end{t}") for t in range(n)]
        self._makespan = model.new_int_var(0, horizon, "makespan")
        self._arcs: dict[tuple[int, int], Any] = {}
        self._ancestors = _ancestors(problem)
        self._add_order()
        self._add_precedences()
        self._add_bounds()
        self._break_symmetry()
        model.add_max_equality(self._makespan, self._ends)
        model.minimize(self._makespan)

    def solve(self, hint: Assignment, timeout_s: float, num_threads: int) -> ExactResult:
        solver = self._cp.CpSolver()
        solver.parameters.max_time_in_seconds = timeout_s
        solver.parameters.num_workers = num_threads
        solver.parameters.random_seed = 0
        solver.parameters.linearization_level = 2
        self._hint(hint)
        status = solver.solve(self._model)
        assert status in (self._cp.OPTIMAL, self._cp.FEASIBLE), solver.status_name(status)
        return ExactResult(
            self._read(solver),
            solver.objective_value / self._resolution,
            solver.best_objective_bound / self._resolution,
            bool(status == self._cp.OPTIMAL),
        )

    def _whole(self, duration: float) -> int:
        return int(duration * self._resolution + 1e-6)

    def _add_order(self) -> None:
        problem, model, n = self._problem, self._model, self._problem.num_tasks
        circuit = []
        durations: list[list[Any]] = [[] for _ in range(n)]
        for previous in range(-1, n):
            for task in range(n):
                if previous == task or (previous >= 0 and task in self._ancestors[previous]):
                    continue
                arc = model.new_bool_var(f"{previous}to{task}")
                self._arcs[previous, task] = arc
                circuit.append((previous + 1, task + 1, arc))
                usage = self._whole(problem.usage(previous, task))
                durations[task].append(usage * arc)
                if previous >= 0:
                    model.add(self._starts[task] >= self._ends[previous]).only_enforce_if(arc)
        for task in range(n):
            arc = model.new_bool_var(f"{task}last")
            self._arcs[task, -1] = arc
            circuit.append((task + 1, 0, arc))
            model.add(self._ends[task] == self._starts[task] + sum(durations[task]))
        if problem.num_engines == 1:
            model.add_circuit(circuit)
        else:
            model.add_multiple_circuit(circuit)
            first = [self._arcs[-1, task] for task in range(n)]
            model.add(sum(first) <= problem.num_engines)

    def _add_precedences(self) -> None:
        for task, producers in enumerate(self._problem.producers):
            for producer in producers:
                delay = self._whole(self._problem.delays[producer])
                self._model.add(self._starts[task] >= self._ends[producer] + delay)

    def _add_bounds(self) -> None:
        """Adds what follows from the rest, but which the solver does not see by itself.

        Tasks that cannot start before ``head``, and after which the run takes ``tail`` more, have
        the engines to themselves in between, and their usages must fit there.
        """
        n = self._problem.num_tasks
        incoming: list[list[Any]] = [[] for _ in range(n)]
        shortest = [1 << 60] * n
        for (previous, task), arc in self._arcs.items():
            if task >= 0:
                usage = self._whole(self._problem.usage(previous, task))
                incoming[task].append(usage * arc)
                shortest[task] = min(shortest[task], usage)
        heads, tails = self._heads_and_tails(shortest)
        for head in set(heads):
            for tail in set(tails):
                tasks = [t for t in range(n) if heads[t] >= head and tails[t] >= tail]
                if tasks:
                    work = sum(term for task in tasks for term in incoming[task])
                    room = (self._makespan - head - tail) * self._problem.num_engines
                    self._model.add(room >= work)

    def _heads_and_tails(self, shortest: list[int]) -> tuple[list[int], list[int]]:
        """Returns the least time before each task's start, and after its end."""
        problem, n = self._problem, self._problem.num_tasks
        delays = [self._whole(delay) for delay in problem.delays]
        heads, tails = [0] * n, [0] * n
        for task in range(n):
            for p in problem.producers[task]:
                heads[task] = max(heads[task], heads[p] + shortest[p] + delays[p])
        for task in range(n - 1, -1, -1):
            for c in problem.consumers[task]:
                tails[task] = max(tails[task], delays[task] + shortest[c] + tails[c])
        return heads, tails

    def _break_symmetry(self) -> None:
        """Orders rows that are alike by the start of their first call."""
        tasks = self._problem.tasks
        by_row: dict[int, list[int]] = {}
        for index, task in enumerate(tasks):
            by_row.setdefault(task.row, []).append(index)
        rows = [by_row[row] for row in sorted(by_row)]
        for one, other in pairwise(rows):
            if self._are_alike(one, other):
                self._model.add(self._starts[one[0]] <= self._starts[other[0]])

    def _are_alike(self, one: list[int], other: list[int]) -> bool:
        if len(one) != len(other):
            return False
        tasks = self._problem.tasks
        places = {task: place for place, task in enumerate(one)}
        others = {task: place for place, task in enumerate(other)}
        for a, b in zip(one, other, strict=True):
            x, y = tasks[a], tasks[b]
            if (x.leaf, x.output_tokens) != (y.leaf, y.output_tokens):
                return False
            if [places.get(p) for p in x.producers] != [others.get(p) for p in y.producers]:
                return False
            if any(p not in places for p in x.producers):
                return False  # rows that read other rows are not interchangeable
        return True

    def _hint(self, hint: Assignment) -> None:
        from helium.planner.timeline import simulate

        timeline = simulate(self._problem, hint)
        used = {(timeline.previous[task], task) for task in hint.order}
        has_next = set(timeline.previous)
        used |= {(task, -1) for task in hint.order if task not in has_next}
        for key, arc in self._arcs.items():
            self._model.add_hint(arc, key in used)
        for task in hint.order:
            self._model.add_hint(self._starts[task], self._whole(timeline.starts[task]))

    def _read(self, solver: Any) -> Assignment:
        n = self._problem.num_tasks
        following = {a: b for (a, b), arc in self._arcs.items() if a >= 0 and solver.value(arc)}
        firsts = [t for t in range(n) if solver.value(self._arcs[-1, t])]
        engines = [0] * n
        for engine, task in enumerate(firsts):
            while task >= 0:
                engines[task] = engine
                task = following[task]
        starts = [solver.value(start) for start in self._starts]
        ends = [solver.value(end) for end in self._ends]
        order = sorted(range(n), key=lambda t: (starts[t], ends[t], t))
        return Assignment(order, engines)


def _ancestors(problem: Problem) -> list[set[int]]:
    """Returns, by task, every task it depends on, directly or through others."""
    ancestors: list[set[int]] = []
    for producers in problem.producers:
        own = set(producers)
        for producer in producers:
            own |= ancestors[producer]
        ancestors.append(own)
    return ancestors
