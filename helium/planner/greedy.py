"""Constructive schedules: the paper's greedy on the templated radix tree, and its partition.

Source: Helium, §5 (Alg. 1). The recursion over the scheduling tree is kept as heaps on its nodes:
from the operator scheduled last, climb until a subtree holds a schedulable one, then take the one
with the longest way to the end of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from helium.planner.problem import Problem
from helium.planner.timeline import Assignment


def schedule_on_tree(problem: Problem, engines: Sequence[int]) -> Assignment:
    """Orders tasks by depth-first walks of the tree, given each task's engine.

    A task is schedulable when its producers and their delays allow; when none is, the one with the
    earliest start is forced. O(n * depth * log n).
    """
    state = _State(problem)
    forks = _forks(problem)
    frontiers = [_Frontier(problem, forks) for _ in range(problem.num_engines)]

    def release(task: int) -> None:
        heappush(frontiers[engines[task]].pending, (state.ready[task], task))

    for task in range(problem.num_tasks):
        if not problem.producers[task]:
            release(task)
    while len(state.order) < problem.num_tasks:
        candidates = (
            (start, engine)
            for engine, frontier in enumerate(frontiers)
            if (start := frontier.next_start(state.clocks[engine])) is not None
        )
        start, engine = min(candidates)
        task = frontiers[engine].take(start, state.last[engine])
        for released in state.run(task, engine):
            release(released)
    return Assignment(state.order, list(engines))


def schedule_on_engines(problem: Problem, fixed: Mapping[int, int] | None = None) -> Assignment:
    """Places tasks one by one, the longest way to the end first, where each would end first.

    Where it ends depends on the engine's clock (load), and on the prefix it shares with the task
    before it there and with the conversation it continues (affinity). O(n * (engines + log n)).

    Args:
        fixed: Engine by task, of those that are placed already.
    """
    fixed = fixed or {}
    state = _State(problem)
    usages, num_tasks = problem.usages, problem.num_tasks
    engines = [0] * num_tasks
    heap = [
        (-problem.priorities[task], task)
        for task in range(problem.num_tasks)
        if not problem.producers[task]
    ]
    heap.sort()
    while heap:
        _, task = heappop(heap)
        ready = state.ready[task]
        history = problem.tasks[task].history
        saving = problem.history_saving(task) if problem.num_engines > 1 else 0.0
        best = float("inf")
        engine = 0
        is_free = task not in fixed
        for candidate, clock in enumerate(state.clocks) if is_free else ():
            usage = usages.get(state.last[candidate] * num_tasks + task)
            if usage is None:
                usage = problem.usage(state.last[candidate], task)
            end = (clock if clock > ready else ready) + usage
            if history >= 0 and engines[history] == candidate:
                end -= saving
            if end < best:
                best, engine = end, candidate
        engines[task] = engine = engine if is_free else fixed[task]
        for released in state.run(task, engine):
            heappush(heap, (-problem.priorities[released], released))
    return Assignment(state.order, engines)


class _State:
    """Clocks and release times while a schedule grows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._num_missing = [len(producers) for producers in problem.producers]
        self.order: list[int] = []
        self.clocks = [0.0] * problem.num_engines
        self.last = [-1] * problem.num_engines
        self.ready = [0.0] * problem.num_tasks

    def run(self, task: int, engine: int) -> list[int]:
        """Appends a task and returns the tasks that now have all their producers."""
        problem = self._problem
        start = max(self.clocks[engine], self.ready[task])
        usage = problem.usage(self.last[engine], task)
        num_calls = problem.calls[task]
        self.order.append(task)
        self.clocks[engine] = start + usage
        self.last[engine] = task
        released = []
        for consumer in problem.consumers[task]:
            is_pipelined = num_calls > 1 and problem.calls[consumer] > 1
            ready = start + (usage / num_calls if is_pipelined else usage) + problem.delays[task]
            self.ready[consumer] = max(self.ready[consumer], ready)
            self._num_missing[consumer] -= 1
            if not self._num_missing[consumer]:
                released.append(consumer)
        return released


class _Frontier:
    """Tasks of one engine whose producers are scheduled; those that may start are on the tree."""

    def __init__(self, problem: Problem, forks: Sequence[int]) -> None:
        self._problem = problem
        self._forks = forks
        self.pending: list[tuple[float, int]] = []
        self._heaps: dict[int, list[tuple[float, int]]] = {}
        self._taken: set[int] = set()
        self._num_available = 0

    def next_start(self, clock: float) -> float | None:
        """Returns when the engine could start something, or ``None`` if it has nothing."""
        if self._num_available:
            return clock
        return max(clock, self.pending[0][0]) if self.pending else None

    def take(self, now: float, last: int) -> int:
        """Removes and returns the next task, given the time and the task scheduled last."""
        forks, tasks, priorities = self._forks, self._problem.tasks, self._problem.priorities
        while self.pending and self.pending[0][0] <= now:
            _, task = heappop(self.pending)
            self._num_available += 1
            node = tasks[task].leaf
            while True:
                heappush(self._heaps.setdefault(node, []), (-priorities[task], task))
                if not node:
                    break
                node = forks[node]
        node = tasks[last].leaf if last >= 0 else 0
        while True:
            heap = self._heaps.get(node, [])
            while heap and heap[0][1] in self._taken:
                heappop(heap)
            if heap:
                _, task = heappop(heap)
                self._taken.add(task)
                self._num_available -= 1
                return task
            assert node, "asked for a task when none may start"
            node = forks[node]


def _forks(problem: Problem) -> list[int]:
    """Returns, for each node, the nearest one above it where a choice is to be made.

    Chains without branches are skipped: below them there is what is below their ends.
    """
    tree = problem.tree
    num_children = [0] * len(tree.parents)
    for node, parent in enumerate(tree.parents):
        if node:
            num_children[parent] += 1
    ends = {task.leaf for task in problem.tasks}
    forks = list(tree.parents)
    for node in sorted(range(1, len(forks)), key=tree.levels.__getitem__):
        parent = tree.parents[node]
        if parent and num_children[parent] == 1 and parent not in ends:
            forks[node] = forks[parent]
    return forks
