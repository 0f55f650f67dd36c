"""The planner: lower, place, schedule, improve.

Source: Helium, §5. Ours adds placement of operators with a clock per engine, cutting the rows into
slices only where it pays, and improvement by local moves.
"""

from __future__ import annotations

from itertools import groupby
from math import inf

from helium.cost.estimates import Estimates
from helium.cost.model import CostModel, TokenStepModel
from helium.cost.profile import Profile
from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.planner.greedy import schedule_on_engines, schedule_on_tree
from helium.planner.local_search import improve
from helium.planner.lowering import Lowering
from helium.planner.orders import BASELINES, lspf, op_wise
from helium.planner.prediction import predict
from helium.planner.problem import WHOLE_OPERATOR, Problem
from helium.planner.timeline import Assignment, Timeline, simulate
from helium.planner.workflow_plan import CallPlace, NestedSequence, WorkflowPlan
from helium.templates.tokenizer import PromptTokenizer

MAX_CALLS_BY_CALL = 64
"""Default: single calls come closer to the optimum than operators, but cost grows with the rows."""

REPLICATION_GAIN_RATIO = 0.01
"""More slices, each computing the static prefixes anew, must shorten the run by this much."""

MAX_OPERATORS_FOR_ALL_SLICINGS = 1_000
"""Larger workflows try the extremes only: rows uncut, and a slice per engine."""

SEVERAL_ENGINES_EFFORT = 4
"""Where single calls are placed on several engines; tens of milliseconds by default."""

DEFAULT_BUDGET = 6_000
"""Tasks evaluated by the local search; some milliseconds."""


def plan_workflow(
    compiled: CompiledPlan,
    tokenizer: PromptTokenizer,
    *,
    workflow: str = "workflow",
    profile: Profile | None = None,
    model: CostModel | None = None,
    num_engines: int = 1,
    policy: str = "helium",
    budget: int = DEFAULT_BUDGET,
    max_calls_by_call: int = MAX_CALLS_BY_CALL,
) -> WorkflowPlan:
    """Plans a bound, optimized workflow. Deterministic; reads no clock.

    Time grows with the operators, not with the rows: columns are sampled.

    Args:
        tokenizer: That of the engines' model.
        workflow: Name in the engines' plans.
        profile: What earlier runs taught about output lengths.
        model: Cost model; the paper's with its KV capacity by default.
        num_engines: Identical engines to place calls on.
        policy: ``helium``, or a baseline: ``query_wise``, ``op_wise``, ``random``, ``lspf``.
            Baselines schedule call by call; the last two take time quadratic in the calls.
        budget: Of the local search, see ``improve``.
        max_calls_by_call: Batches up to this many calls are scheduled call by call.

    Raises:
        PlanError: The policy is unknown, there is no engine, or the chat template refuses messages.
    """
    if num_engines < 1:
        raise PlanError(f"plan: num_engines is {num_engines}; give at least one")
    if policy != "helium" and policy not in BASELINES:
        raise PlanError(f"plan: unknown policy {policy!r}; known: {['helium', *BASELINES]}")
    model = model or TokenStepModel()
    lowering = Lowering(compiled, tokenizer, Estimates(compiled, tokenizer, profile))
    if policy != "helium":
        problem = lowering.call_problem(model, num_engines)
        return _plan(workflow, policy, lowering, problem, BASELINES[policy](problem))
    if sum(lowering.num_calls.values()) <= max_calls_by_call:
        problem = lowering.call_problem(model, num_engines)
        return _plan(workflow, policy, lowering, problem, schedule_calls(problem, budget))
    problem, assignment, num_slices = _place(lowering, model, num_engines)
    assignment = improve(problem, assignment, budget)
    return _plan(workflow, policy, lowering, problem, assignment, num_slices, is_by_call=False)


def schedule_calls(problem: Problem, budget: int) -> Assignment:
    """Returns the best of the constructive schedules, improved; for small problems.

    On several engines the search has far more local optima to get stuck in: there it starts from
    the two best, each with ``SEVERAL_ENGINES_EFFORT`` times the budget.
    """
    placed = schedule_on_engines(problem)
    starts = [placed, schedule_on_tree(problem, placed.engines), lspf(problem), op_wise(problem)]
    starts.sort(key=lambda assignment: simulate(problem, assignment).makespan)
    if problem.num_engines == 1:
        return improve(problem, starts[0], budget)
    budget *= SEVERAL_ENGINES_EFFORT
    found = [improve(problem, start, budget, seed) for seed, start in enumerate(starts[:2])]
    return _best(problem, found)[0]


def _place(
    lowering: Lowering, model: CostModel, num_engines: int
) -> tuple[Problem, Assignment, int]:
    """Cuts rows into slices and places operators on each slice's engines.

    Takes more slices only where the predicted run gets noticeably shorter.
    """
    most_rows = max(lowering.num_calls.values())
    slicings = [k for k in range(1, num_engines + 1) if not num_engines % k and k <= most_rows]
    if len(lowering.operators) > MAX_OPERATORS_FOR_ALL_SLICINGS:
        slicings = sorted({slicings[0], slicings[-1]})
    chosen: tuple[Problem, Assignment, int] | None = None
    limit = inf
    for num_slices in slicings:
        problem = lowering.operator_problem(model, num_engines // num_slices, num_slices)
        placed = schedule_on_engines(problem)
        on_tree = schedule_on_tree(problem, placed.engines)
        assignment, timeline = _best(problem, [placed, on_tree])
        if chosen is None or timeline.makespan < limit:
            chosen = problem, assignment, num_slices
            limit = timeline.makespan * (1 - REPLICATION_GAIN_RATIO)
        if limit <= problem.shortest_chain():
            break  # more slices cannot pay
    assert chosen is not None, "one slice is always possible"
    return chosen


def _best(problem: Problem, assignments: list[Assignment]) -> tuple[Assignment, Timeline]:
    timelines = [simulate(problem, assignment) for assignment in assignments]
    best = min(range(len(timelines)), key=lambda i: (timelines[i].makespan, i))
    return assignments[best], timelines[best]


def _plan(
    workflow: str,
    policy: str,
    lowering: Lowering,
    problem: Problem,
    assignment: Assignment,
    num_slices: int = 1,
    *,
    is_by_call: bool = True,
) -> WorkflowPlan:
    timeline = simulate(problem, assignment)
    critical = [problem.tasks[task].operator for task in timeline.critical_path()]
    calls: dict[tuple[str, int], CallPlace] = {}
    if is_by_call:
        ranks = [0] * problem.num_engines
        for index in assignment.order:
            task, engine = problem.tasks[index], assignment.engines[index]
            calls[task.operator, task.row] = CallPlace(engine, ranks[engine])
            ranks[engine] += 1
    return WorkflowPlan(
        workflow=workflow,
        policy=policy,
        num_engines=problem.num_engines * num_slices,
        num_slices=num_slices,
        is_by_call=is_by_call,
        sequences=_sequences(lowering, problem, assignment, num_slices),
        makespan=timeline.makespan,
        unit=problem.model.unit,
        predictions=predict(problem, timeline, num_slices, lowering.num_calls),
        critical_path=tuple(name for name, _ in groupby(critical)),
        lowering=lowering,
        _calls=calls,
    )


def _sequences(
    lowering: Lowering, problem: Problem, assignment: Assignment, num_slices: int
) -> tuple[NestedSequence, ...]:
    """Cuts each engine's order where its neighbours do not run query by query."""
    groups: list[list[list[int]]] = [[] for _ in range(problem.num_engines)]
    seen: set[str] = set()
    for task in assignment.order:
        name = problem.tasks[task].operator
        if name in seen:
            continue  # one of several calls of an operator: the first one tells its place
        seen.add(name)
        own = groups[assignment.engines[task]]
        if (
            own
            and problem.tasks[task].row == WHOLE_OPERATOR
            and problem.is_nested(own[-1][-1], task)
        ):
            own[-1].append(task)
        else:
            own.append([task])
    sequences = []
    for engine, engine_groups in enumerate(groups):
        rank = 0
        for group in engine_groups:
            names = tuple(problem.tasks[task].operator for task in group)
            sequences.append(NestedSequence(names, engine, rank))
            rows = max(lowering.compiled.rows.num_rows(name) for name in names)
            rank += len(names) * -(-rows // num_slices)
    return tuple(sequences)
