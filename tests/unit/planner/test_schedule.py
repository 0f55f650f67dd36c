from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner.instances import INSTANCES, debate, iterative, map_reduce, trading
from helium.cost import TokenStepModel
from helium.planner.exact import solve_exactly
from helium.planner.greedy import schedule_on_engines, schedule_on_tree
from helium.planner.local_search import improve
from helium.planner.orders import BASELINES
from helium.planner.planning import DEFAULT_BUDGET, schedule_calls
from helium.planner.problem import WHOLE_OPERATOR, PrefixTree, Problem, Task
from helium.planner.timeline import Assignment, Evaluator, simulate

_TREE = PrefixTree(
    parents=[0, 0, 1, 1, 0],
    levels=[0, 1, 2, 2, 1],
    tokens=[0.0, 100.0, 150.0, 400.0, 50.0],
    shared_tokens=[0.0, 100.0, 150.0, 100.0, 0.0],
)


@st.composite
def _problems(draw: st.DrawFn) -> Problem:
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, 12))):
        calls = draw(st.sampled_from([1, 1, 4]))
        producers = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        tasks.append(
            Task(
                f"op{index}",
                draw(st.integers(0, 1)) if calls == 1 else WHOLE_OPERATOR,
                calls,
                draw(st.integers(0, 4)),
                draw(st.sampled_from([1.0, 20.0, 300.0])),
                tuple(sorted(producers)),
                max(producers, default=-1),
            )
        )
    return Problem(tasks, _TREE, TokenStepModel(1_000), draw(st.integers(1, 3)))


def _check_feasible(problem: Problem, assignment: Assignment) -> None:
    """Times obey the model, by the definitions rather than by the evaluator's way."""
    assert sorted(assignment.order) == list(range(problem.num_tasks))
    assert all(0 <= engine < problem.num_engines for engine in assignment.engines)
    timeline = simulate(problem, assignment)
    for task in range(problem.num_tasks):
        start, end = timeline.starts[task], timeline.ends[task]
        usage = problem.usage(timeline.previous[task], task)
        assert end >= start + usage - 1e-9
        for producer in problem.producers[task]:
            assert assignment.order.index(producer) < assignment.order.index(task)
            delay = problem.delays[producer]
            if problem.calls[task] == 1 or problem.calls[producer] == 1:
                assert start >= timeline.ends[producer] + delay - 1e-9
            else:
                assert start > timeline.starts[producer] + delay
                assert end >= timeline.ends[producer] + delay
        before = timeline.previous[task]
        if before >= 0:
            busy = problem.usage(timeline.previous[before], before)
            assert start >= timeline.starts[before] + busy - 1e-9
    assert timeline.makespan == max(timeline.ends, default=0.0)


@settings(max_examples=60, deadline=None)
@given(_problems())
def test_every_scheduler_obeys_dependencies_delays_and_clocks(problem: Problem) -> None:
    placed = schedule_on_engines(problem)
    for assignment in (placed, schedule_on_tree(problem, placed.engines)):
        _check_feasible(problem, assignment)
        improved = improve(problem, assignment, 400)
        _check_feasible(problem, improved)
        before, after = simulate(problem, assignment), simulate(problem, improved)
        slack = 1e-3 * before.total_usage / problem.num_engines
        assert after.makespan <= before.makespan + slack
    if all(calls == 1 for calls in problem.calls):
        for policy in BASELINES.values():
            _check_feasible(problem, policy(problem))


@settings(max_examples=60, deadline=None)
@given(_problems(), st.integers(0, 1_000))
def test_evaluating_a_changed_tail_equals_evaluating_anew(problem: Problem, seed: int) -> None:
    generator = random.Random(seed)
    assignment = schedule_on_engines(problem)
    evaluator = Evaluator(problem)
    evaluator.keep(assignment.order, assignment.engines)
    for _ in range(5):
        start = generator.randrange(problem.num_tasks)
        engines = list(assignment.engines)
        for task in assignment.order[start:]:
            engines[task] = generator.randrange(problem.num_engines)
        found = evaluator.try_change(assignment.order, engines, start)
        expected = Evaluator(problem).keep(assignment.order, engines)
        assert found == expected
        makespan, total = expected
        weight = generator.random()
        score = makespan + weight * total
        for limit in (score, score * generator.random()):
            tried = evaluator.try_change(assignment.order, engines, start, limit, weight)
            assert tried == expected or (limit < score and tried == (inf, inf))
        if generator.randrange(2):  # what is not kept leaves no trace
            evaluator.try_change(assignment.order, engines, start)
            evaluator.keep_change()
            assignment = Assignment(assignment.order, engines)


def test_usage_counts_what_the_call_before_does_not_share() -> None:
    model = TokenStepModel(1_000)
    same = [Task("a", 0, 1, 3, 10.0, ()), Task("b", 0, 1, 2, 10.0, ())]
    problem = Problem(same, _TREE, model)
    assert problem.usage(-1, 1) == model.usage(150, 0, 10)
    assert problem.usage(0, 1) == model.usage(50, 100, 10)
    other_row = [Task("a", 0, 1, 3, 10.0, ()), Task("a", 1, 1, 3, 10.0, ())]
    assert Problem(other_row, _TREE, model).usage(0, 1) == model.usage(300, 100, 10)
    same_row = [Task("a", 1, 1, 3, 10.0, ()), Task("b", 1, 1, 3, 10.0, ())]
    assert Problem(same_row, _TREE, model).usage(0, 1) == model.usage(0, 400, 10)


def test_local_search_is_deterministic() -> None:
    problem = trading(3, 2, engines=2).problem()
    start = schedule_on_engines(problem)
    one, two = improve(problem, start, 5_000), improve(problem, start, 5_000)
    assert one == two


def test_local_search_repairs_a_bad_order() -> None:
    problem = map_reduce(3, 3).problem()
    bad = BASELINES["query_wise"](problem)
    improved = simulate(problem, improve(problem, bad, 20_000)).makespan
    assert improved < 0.5 * simulate(problem, bad).makespan


@pytest.mark.parametrize(
    "instance",
    [map_reduce(2, 3), map_reduce(4, 2), debate(2, 2), iterative(3, 3), trading(2, 2)],
    ids=lambda instance: instance.name,
)
def test_small_instances_are_scheduled_within_one_percent_of_the_optimum(instance) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("ortools")
    problem = instance.problem()
    found = schedule_calls(problem, DEFAULT_BUDGET)
    exact = solve_exactly(problem, found, timeout_s=60, num_threads=1)
    assert exact.is_optimal
    makespan = simulate(problem, found).makespan
    assert exact.lower_bound <= makespan * (1 + 1e-9)
    assert makespan <= 1.01 * exact.lower_bound


def test_the_solver_finds_the_optimum_of_brute_force() -> None:
    pytest.importorskip("ortools")
    from itertools import permutations

    tasks = [
        Task("a", 0, 1, 2, 30.0, ()),
        Task("a", 1, 1, 2, 30.0, ()),
        Task("b", 0, 1, 3, 60.0, ()),
        Task("b", 1, 1, 3, 60.0, ()),
        Task("c", 0, 1, 4, 20.0, (0, 2)),
        Task("c", 1, 1, 4, 20.0, (1, 3)),
    ]
    problem = Problem(tasks, _TREE, TokenStepModel(100))
    feasible = (
        list(order)
        for order in permutations(range(6))
        if all(order.index(p) < order.index(t) for t in range(6) for p in problem.producers[t])
    )
    best = min(simulate(problem, Assignment(order, [0] * 6)).makespan for order in feasible)
    exact = solve_exactly(problem, schedule_on_engines(problem), timeout_s=60, num_threads=1)
    assert exact.is_optimal
    assert simulate(problem, exact.assignment).makespan == pytest.approx(best)


def test_instances_are_of_the_stated_size() -> None:
    assert len(INSTANCES) >= 10
    assert {instance.problem().num_engines for instance in INSTANCES} == {1, 2}
    assert all(6 <= instance.problem().num_tasks <= 24 for instance in INSTANCES)
