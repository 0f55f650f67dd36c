"""Improvement of a schedule by local moves: deterministic, with a budget in work, not in time.

Moves take a short block of the order to another place its dependencies allow, or a task to another
engine. A worse schedule is accepted while it is within a threshold that shrinks to nothing, which
lets the search leave the greedy's local optimum. The best schedule seen is returned.
"""

from __future__ import annotations

import random

from helium.planner.problem import Problem
from helium.planner.timeline import Assignment, Evaluator

_MAX_BLOCK = 4
_START_THRESHOLD_RATIO = 0.02
_USAGE_WEIGHT = 1e-3
"""Among equal makespans, the schedule with less total usage: it has more slack to improve."""


def improve(problem: Problem, assignment: Assignment, budget: int, seed: int = 0) -> Assignment:
    """Returns an assignment at least as good.

    Args:
        budget: Tasks to evaluate; one evaluation of the whole schedule costs ``num_tasks``.
        seed: Of the moves' order; equal arguments give equal results in every process.
    """
    if problem.num_tasks < 2 or budget < 2 * problem.num_tasks:
        return assignment
    return _Search(problem, assignment, budget, seed).run()


class _Search:
    def __init__(self, problem: Problem, assignment: Assignment, budget: int, seed: int) -> None:
        self._problem = problem
        self._budget = budget
        self._random = random.Random(seed)
        self._bits = self._random.getrandbits
        self._order = list(assignment.order)
        self._engines = list(assignment.engines)
        self._evaluator = Evaluator(problem)
        self._neighbours = _tree_neighbours(problem)
        self._conversations = _conversations(problem)
        self._positions = [0] * problem.num_tasks
        self._renumber(0, problem.num_tasks)

    def run(self) -> Assignment:
        evaluator, num_tasks = self._evaluator, self._problem.num_tasks
        usage_weight = _USAGE_WEIGHT / self._problem.num_engines
        makespan, total = evaluator.keep(self._order, self._engines)
        current = best = makespan + usage_weight * total
        best_order, best_engines = self._order, self._engines
        spent = num_tasks
        # An evaluation counts from where the last rejected move began: how far it really had to
        # look, and how soon it could stop, must not change what is found.
        valid = num_tasks
        while spent < self._budget:
            order, engines = self._order, self._engines
            start, stop = self._move()
            if start == stop:
                spent += 1  # a move that leads nowhere is work, too
                continue
            valid = min(start, valid)
            spent += num_tasks - valid
            threshold = _START_THRESHOLD_RATIO * (1 - spent / self._budget) ** 2
            limit = current * (1 + max(0.0, threshold))
            makespan, total = evaluator.try_change(
                self._order, self._engines, start, limit, usage_weight
            )
            score = makespan + usage_weight * total
            if score <= limit:
                evaluator.keep_change()
                current, valid = score, num_tasks
                if score < best * (1 - 1e-12):
                    best, best_order, best_engines = score, self._order, self._engines
            else:
                self._order, self._engines = order, engines
                self._renumber(start, stop)
        return Assignment(best_order, best_engines)

    def _move(self) -> tuple[int, int]:
        """Replaces order or engines by changed copies; returns the positions that changed."""
        if self._problem.num_engines > 1 and self._random.random() < 0.4:
            return self._move_engine()
        begin = self._draw(len(self._order))
        return self._move_block(begin, 1 + self._draw(_MAX_BLOCK))

    def _draw(self, stop: int) -> int:
        """Returns a number below ``stop``; what ``randrange`` does, at a third of its cost."""
        num_bits, bits = stop.bit_length(), self._bits
        drawn = bits(num_bits)
        while drawn >= stop:
            drawn = bits(num_bits)
        return drawn

    def _move_engine(self) -> tuple[int, int]:
        """Moves a task to another engine, with those of its conversation on the same engine."""
        task = self._draw(self._problem.num_tasks)
        old = self._engines[task]
        other = self._draw(self._problem.num_engines - 1)
        self._engines = list(self._engines)
        moved = [t for t in self._conversations[task] if self._engines[t] == old]
        for each in moved:
            self._engines[each] = other + (other >= old)
        # What follows the first of them may change; the order itself does not.
        positions = [self._positions[each] for each in moved]
        start, stop = min(positions), max(positions) + 1
        if self._draw(2):  # and to a place that suits it there
            begin, end = self._move_block(self._positions[task], 1)
            if begin != end:
                return min(start, begin), max(stop, end)
        return start, stop

    def _move_block(self, begin: int, length: int) -> tuple[int, int]:
        """Moves a stretch of the order to elsewhere in the range its dependencies leave it."""
        order, positions, draw = self._order, self._positions, self._draw
        producers, consumers = self._problem.producers, self._problem.consumers
        block = order[begin : begin + length]
        length = len(block)
        low, high = 0, len(order)  # where the block may begin, and must have ended
        for task in block:
            for producer in producers[task]:
                position = positions[producer]
                if position < begin and position >= low:
                    low = position + 1
            for consumer in consumers[task]:
                position = positions[consumer]
                if position >= begin + length and position < high:
                    high = position
        high -= length
        if low >= high:
            return 0, 0
        if draw(2):
            near = self._neighbours[block[0]]
            position = positions[near[draw(len(near))]]
            target = position + 1 - (length if position >= begin else 0)
            target = min(max(target, low), high)
        else:
            target = low + draw(high - low + 1)
        if target == begin:
            return 0, 0
        self._order = order[:begin] + order[begin + length :]
        self._order[target:target] = block
        start, stop = min(begin, target), max(begin, target) + length
        self._renumber(start, stop)
        return start, stop

    def _renumber(self, start: int, stop: int) -> None:
        positions, order = self._positions, self._order
        for position in range(start, stop):
            positions[order[position]] = position


def _conversations(problem: Problem) -> list[list[int]]:
    """Returns, for each task, all tasks of its conversation, itself among them."""
    conversations: list[list[int]] = []
    for index, task in enumerate(problem.tasks):
        conversation = conversations[task.history] if task.history >= 0 else []
        conversation.append(index)
        conversations.append(conversation)
    return conversations


def _tree_neighbours(problem: Problem) -> list[list[int]]:
    """Returns, for each task, tasks that are likely to share much of its prompt."""
    tree = problem.tree
    paths: dict[int, tuple[int, ...]] = {0: ()}

    def path(node: int) -> tuple[int, ...]:
        nodes = []
        while node:
            nodes.append(node)
            node = tree.parents[node]
        return tuple(reversed(nodes))

    for task in problem.tasks:
        if task.leaf not in paths:
            paths[task.leaf] = path(task.leaf)
    keys = [(paths[task.leaf], task.row) for task in problem.tasks]
    by_path = sorted(range(len(keys)), key=lambda t: keys[t])
    by_row = sorted(range(len(keys)), key=lambda t: (keys[t][1], keys[t][0]))
    neighbours: list[list[int]] = [[] for _ in keys]
    for ordered in (by_path, by_row):
        for place, index in enumerate(ordered):
            near = ordered[max(0, place - 2) : place + 3]
            neighbours[index] += [other for other in near if other != index]
    return neighbours
