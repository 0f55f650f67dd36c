"""Where calls run: the planner's placement on several engines against round robin, and one engine.

    python -m benchmarks.runtime.placement [--rows 8] [--engines 2] [--output FILE]

All three make the same calls with the same plan, on simulated engines in virtual time; only the
engine of each call differs, so figures are exact and the same on every machine. Outputs are
compared; they must be equal. Source of the workflows: Helium, §7.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.output_lengths import output_lengths
from benchmarks.results_file import environment, write_results
from benchmarks.workflows import WORKFLOWS
from helium.cost import RooflineModel, TokenStepModel
from helium.optimizer.driver import optimize
from helium.planner import plan_workflow
from helium.protocol import EnginePlan
from helium.runtime import EngineBackend, ModelAnswer, ModelCall, RunResult, run_plan
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.simulation import Simulation

DEFAULT_WORKFLOWS = ("trading-4b", "mapreduce-tatqa")
PLACEMENTS = ("one_engine", "round_robin", "planner")


class RoundRobin:
    """Sends every call to the next engine, wherever it was placed; all engines know all plans."""

    def __init__(self, engines: Sequence[EngineBackend], turns: Iterator[int]) -> None:
        self._engines = engines
        self._turns = turns

    async def register(self, plan: EnginePlan) -> None:
        for engine in self._engines:
            await engine.register(plan)

    async def call(self, request: ModelCall) -> ModelAnswer:
        return await self._engines[next(self._turns)].call(request)


def run_placement(
    workflow: str, placement: str, *, rows: int, num_engines: int, scale: float = 1.0
) -> tuple[dict[str, Any], RunResult]:
    """Runs a workflow on fresh engines; returns its figures and its result."""
    num_engines = 1 if placement == "one_engine" else num_engines
    workload = WORKFLOWS[workflow](size=rows, scale=scale)
    cost = RooflineModel.preset("H100-80GB", "Qwen3-8B")
    simulation = Simulation(
        cost,
        EngineOptions(helium=True),
        num_engines=num_engines,
        lengths=output_lengths(workflow),
        seed=0,
    )
    compiled = optimize(workload.compile()).compiled
    schedule = plan_workflow(
        compiled,
        simulation.tokenizer,
        workflow=workload.name,
        model=TokenStepModel(simulation.engines[0].num_blocks * simulation.block_size),
        num_engines=num_engines,
    )
    backends: list[EngineBackend] = list(simulation.backends)
    if placement == "round_robin":
        turns = itertools.cycle(range(num_engines))
        backends = [RoundRobin(simulation.backends, turns) for _ in backends]
    result = simulation.run(lambda: run_plan(compiled, backends, schedule=schedule, run="r"))
    assert not result.failures, result.failures[0]
    figures = simulation.figures()
    return {
        "workflow": workflow,
        "placement": placement,
        "num_engines": num_engines,
        "rows": rows,
        "num_calls": figures.num_calls,
        "num_prefill_tokens": figures.num_prefill_tokens,
        "num_cached_tokens": figures.num_cached_tokens,
        "makespan_s": simulation.clock.now(),
    }, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflow", action="append", choices=list(WORKFLOWS))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the lengths of texts")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = []
    for workflow in options.workflow or DEFAULT_WORKFLOWS:
        outputs = []
        for placement in PLACEMENTS:
            figures, result = run_placement(
                workflow,
                placement,
                rows=options.rows,
                num_engines=options.engines,
                scale=options.scale,
            )
            outputs.append(result.outputs)
            results.append(figures | {"scale": options.scale})
            print(
                f"{workflow:16} {placement:12} {figures['num_calls']:5} calls "
                f"{figures['num_prefill_tokens']:8} prefill {figures['num_cached_tokens']:8} cached"
                f" {figures['makespan_s']:7.1f} s",
                flush=True,
            )
        assert all(output == outputs[0] for output in outputs), f"{workflow}: outputs differ"
    if options.output is not None:
        write_results(options.output, {"environment": environment(), "results": results})


if __name__ == "__main__":
    main()
