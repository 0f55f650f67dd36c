"""The planner: lower, place, schedule, improve.

Source: Helium, §5. Ours adds placement of operators with a clock per engine, cutting the rows into
slices only where it pays, and improvement by local moves.
"""

from __future__ import annotations

from itertools import groupby

from helium.cost.estimates import Estimates
from helium.cost.model import CostModel, TokenStepModel
from helium.cost.profile import Profile
from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.planner.greedy import schedule_on_engines, schedule_on_tree
from helium.planner.local_search import improve
from helium.planner.lowering import Lowering
from helium.planner.orders import BASELINES, lspf, op_wise
from helium.planner.placing import best_of, place_operators
from helium.planner.prediction import predict
from helium.planner.problem import Problem
from helium.planner.timeline import Assignment, simulate
from helium.planner.workflow_plan import CallPlace, NestedSequence, WorkflowPlan
from helium.templates.tokenizer import PromptTokenizer

MAX_CALLS_BY_CALL = 64
"""Default: single calls come closer to the optimum than operators, but cost grows with the rows."""

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
    problem, assignment, num_slices, is_uneven = place_operators(lowering, model, num_engines)
    if not is_uneven:  # slices are to stay equal, which moves of single tasks do not know
        assignment = improve(problem, assignment, budget)
    return _plan(
        workflow,
        policy,
        lowering,
        problem,
        assignment,
        num_slices,
        is_uneven=is_uneven,
        is_by_call=False,
    )


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
    return best_of(problem, found)[0]


def _plan(
    workflow: str,
    policy: str,
    lowering: Lowering,
    problem: Problem,
    assignment: Assignment,
    num_slices: int = 1,
    *,
    is_uneven: bool = False,
    is_by_call: bool = True,
) -> WorkflowPlan:
    timeline = simulate(problem, assignment)
    num_copies = 1 if is_uneven else num_slices  # of the slice that has tasks
    critical = [problem.tasks[task].operator for task in timeline.critical_path()]
    calls: dict[tuple[str, int], CallPlace] = {}
    if is_by_call:
        ranks = [0] * problem.num_engines
        for index in assignment.order:
            task, engine = problem.tasks[index], assignment.engines[index]
            calls[task.operator, task.row] = CallPlace(engine, ranks[engine])
            ranks[engine] += 1
    # All slices run on the schedule of the first; what they leave over comes after them.
    ends = [0] * problem.num_engines
    sequences = _sequences(lowering, problem, assignment, num_slices, ends)
    left_over: tuple[NestedSequence, ...] = ()
    if is_uneven:
        width = problem.num_engines // num_slices
        ends = [ends[engine % width] for engine in range(problem.num_engines)]
        left_over = _sequences(lowering, problem, assignment, num_slices, ends, num_slices)
    return WorkflowPlan(
        workflow=workflow,
        policy=policy,
        num_engines=problem.num_engines * num_copies,
        num_slices=num_slices,
        is_by_call=is_by_call,
        sequences=sequences,
        left_over=left_over,
        makespan=timeline.makespan,
        unit=problem.model.unit,
        predictions=predict(problem, timeline, num_copies, lowering.num_calls),
        critical_path=tuple(name for name, _ in groupby(critical)),
        lowering=lowering,
        _calls=calls,
    )


def _sequences(
    lowering: Lowering,
    problem: Problem,
    assignment: Assignment,
    num_slices: int,
    ranks: list[int],
    part: int = 0,
) -> tuple[NestedSequence, ...]:
    """Cuts each engine's order where its neighbours do not run query by query.

    Args:
        ranks: First rank by engine; becomes that after its last sequence.
        part: The tasks looked at, see ``Task.part``.
    """
    groups: list[list[list[int]]] = [[] for _ in range(problem.num_engines)]
    seen: set[str] = set()
    for task in assignment.order:
        own, name = problem.tasks[task], problem.tasks[task].operator
        if name in seen or own.part != part:
            continue  # one of several calls of an operator: the first one tells its place
        seen.add(name)
        before = groups[assignment.engines[task]]
        if before and own.row < 0 and problem.is_nested(before[-1][-1], task):
            before[-1].append(task)
        else:
            before.append([task])
    sequences = []
    for engine, engine_groups in enumerate(groups):
        for group in engine_groups:
            names = tuple(problem.tasks[task].operator for task in group)
            sequences.append(NestedSequence(names, engine, ranks[engine]))
            rows = [lowering.compiled.rows.num_rows(name) for name in names]
            is_left_over = part == num_slices
            most = max(n % num_slices if is_left_over else -(-n // num_slices) for n in rows)
            ranks[engine] += len(names) * most
    return tuple(sequences)
