"""How far schedules are from the proven optimum, on small instances under the paper's cost model.

Usage: python -m benchmarks.planner.optimality [--timeout-s 120] [--output FILE]

``helium`` is the planner as it ships (single calls on batches this small), ``helium_operators`` the
same made to schedule whole operators, as it does on large batches. Needs OR-Tools.

Source: Helium, §7 (gap 0.9 % on average, 3.6 % at most).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.planner.instances import INSTANCES, MODEL, Instance
from benchmarks.results_file import environment, write_results
from helium.planner.exact import solve_exactly
from helium.planner.orders import BASELINES, producers_first
from helium.planner.planning import DEFAULT_BUDGET, plan_workflow, schedule_calls
from helium.planner.problem import Problem
from helium.planner.timeline import Assignment, simulate
from helium.templates import WordTokenizer

POLICIES = ("helium", "helium_operators", *BASELINES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout-s", type=float, default=120.0, help="of the solver, each")
    parser.add_argument("--threads", type=int, default=2, help="of the solver")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/planner_optimality.json")
    )
    arguments = parser.parse_args()
    results = []
    print(
        f"{'instance':24}{'calls':>6}{'optimum':>10}{'proven':>7}", *(f"{p:>17}" for p in POLICIES)
    )
    for instance in INSTANCES:
        result = measure(instance, arguments.timeout_s, arguments.threads)
        results.append(result)
        gaps = result["gap_percent"]
        print(
            f"{result['instance']:24}{result['calls']:6}{result['optimum_steps']:10.1f}"
            f"{'yes' if result['is_proven'] else 'no':>7}",
            *(f"{gaps[policy]:16.3f}%" for policy in POLICIES),
            flush=True,
        )
    summary = summarize(results)
    for name, row in summary.items():
        print(f"{name:47}", *(f"{row[policy]:16.3f}%" for policy in POLICIES))
    settings = {
        "timeout_s": arguments.timeout_s,
        "kv_capacity_tokens": MODEL.kv_capacity_tokens,
        "budget": DEFAULT_BUDGET,
    }
    report = {"environment": environment() | settings, "summary": summary, "instances": results}
    write_results(arguments.output, report)


def measure(instance: Instance, timeout_s: float, num_threads: int) -> dict[str, Any]:
    """Returns the makespans of all policies and their gaps to the optimum.

    Gaps are to the optimum where it is proven, and to the solver's lower bound where it is not.
    """
    problem = instance.problem()
    schedules = {
        "helium": schedule_calls(problem, DEFAULT_BUDGET),
        "helium_operators": by_operator(instance, problem),
        **{name: policy(problem) for name, policy in BASELINES.items()},
    }
    makespans = {name: simulate(problem, found).makespan for name, found in schedules.items()}
    start = time.perf_counter()
    exact = solve_exactly(
        problem, schedules["helium"], timeout_s=timeout_s, num_threads=num_threads
    )
    # The solver rounds durations; its schedule is priced like everybody's.
    optimum = simulate(problem, exact.assignment).makespan
    reference = min(optimum, *makespans.values()) if exact.is_optimal else exact.lower_bound
    return {
        "instance": instance.name,
        "calls": problem.num_tasks,
        "engines": problem.num_engines,
        "optimum_steps": optimum,
        "lower_bound_steps": exact.lower_bound,
        "is_proven": exact.is_optimal,
        "solver_s": round(time.perf_counter() - start, 2),
        "makespan_steps": makespans,
        "gap_percent": {name: 100 * (m / reference - 1) for name, m in makespans.items()},
    }


def by_operator(instance: Instance, problem: Problem) -> Assignment:
    """Returns the order of calls that the operator-level planner's ranks give."""
    compiled, profile = instance.compile()
    plan = plan_workflow(
        compiled,
        WordTokenizer(),
        profile=profile,
        model=MODEL,
        num_engines=instance.num_engines,
        max_calls_by_call=0,
    )
    places = [plan.place(task.operator, task.row) for task in problem.tasks]
    # Ranks of different engines do not compare; the predicted starts of their sequences do.
    starts = {
        name: plan.predictions[sequence.operators[0]].start
        for sequence in (*plan.left_over, *plan.sequences)
        for name in sequence.operators
    }
    preferred = sorted(
        range(problem.num_tasks),
        key=lambda task: (starts[problem.tasks[task].operator], places[task].rank),
    )
    return Assignment(producers_first(problem, preferred), [place.engine for place in places])


def summarize(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns average and largest gap per policy over the instances with a proven optimum."""
    proven = [result["gap_percent"] for result in results if result["is_proven"]]
    title = f"of {len(proven)} proven"
    return {
        f"average {title}": {p: sum(g[p] for g in proven) / len(proven) for p in POLICIES},
        f"largest {title}": {p: max(g[p] for g in proven) for p in POLICIES},
    }


if __name__ == "__main__":
    main()
