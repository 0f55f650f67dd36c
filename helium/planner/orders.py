"""Baseline schedules, behind the same interface as the planner's own.

Each takes a problem and returns an assignment. On several engines, queries are cut into contiguous
slices, one per engine, as the systems they stand for do.

Source: Helium, §7 (query-wise, operator-wise, random, LSPF).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from helium.planner.problem import Problem
from helium.planner.timeline import Assignment


def query_wise(problem: Problem) -> Assignment:
    """One query after the other, each in topological order."""
    by_query = sorted(range(problem.num_tasks), key=lambda task: (problem.tasks[task].row, task))
    # A task may read another row's (slices, concatenations); producers still come first.
    return Assignment(producers_first(problem, by_query), _sliced_engines(problem))


def op_wise(problem: Problem) -> Assignment:
    """One operator after the other, in topological order, each for all queries."""
    return Assignment(list(range(problem.num_tasks)), _sliced_engines(problem))


def random_order(problem: Problem, seed: int = 0) -> Assignment:
    """Whatever may start, drawn at random."""
    generator = random.Random(seed)
    return _dispatch(problem, lambda tasks, _: tasks[generator.randrange(len(tasks))])


def lspf(problem: Problem) -> Assignment:
    """Of what may start, the task that shares the longest prefix with the one before it."""

    def pick(tasks: Sequence[int], last: int) -> int:
        return max(tasks, key=lambda task: (problem.cached_tokens(last, task)[0], -task))

    return _dispatch(problem, pick)


BASELINES: dict[str, Callable[[Problem], Assignment]] = {
    "query_wise": query_wise,
    "op_wise": op_wise,
    "random": random_order,
    "lspf": lspf,
}


def producers_first(problem: Problem, preferred: Sequence[int]) -> list[int]:
    """Returns the preferred order, each task preceded by the producers it still lacks; linear."""
    order: list[int] = []
    done: set[int] = set()
    for wanted in preferred:
        stack = [wanted]
        while stack:
            task = stack[-1]
            missing = [p for p in problem.producers[task] if p not in done]
            if missing:
                stack += reversed(missing)
                continue
            stack.pop()
            if task not in done:
                done.add(task)
                order.append(task)
    return order


def _sliced_engines(problem: Problem) -> list[int]:
    num_rows = 1 + max((task.row for task in problem.tasks), default=0)
    return [
        0 if task.row < 0 else task.row * problem.num_engines // num_rows for task in problem.tasks
    ]


def _dispatch(problem: Problem, pick: Callable[[Sequence[int], int], int]) -> Assignment:
    """Runs the engines' clocks; whenever one is free, ``pick`` chooses among what may start.

    ``pick`` gets the candidates and the task before. When nothing may start yet, the candidates are
    those that may start first. Quadratic in the tasks.
    """
    engines = _sliced_engines(problem)
    num_missing = [len(producers) for producers in problem.producers]
    ready = [0.0] * problem.num_tasks
    clocks = [0.0] * problem.num_engines
    last = [-1] * problem.num_engines
    waiting = [task for task in range(problem.num_tasks) if not num_missing[task]]
    order: list[int] = []
    while waiting:
        start, engine = min((max(clocks[engines[t]], ready[t]), engines[t]) for t in waiting)
        candidates = [
            t for t in waiting if engines[t] == engine and max(clocks[engine], ready[t]) <= start
        ]
        task = pick(candidates, last[engine])
        waiting.remove(task)
        order.append(task)
        clocks[engine] = start + problem.usage(last[engine], task)
        last[engine] = task
        for consumer in problem.consumers[task]:
            ready[consumer] = max(ready[consumer], clocks[engine] + problem.delays[task])
            num_missing[consumer] -= 1
            if not num_missing[consumer]:
                waiting.append(consumer)
    return Assignment(order, engines)
