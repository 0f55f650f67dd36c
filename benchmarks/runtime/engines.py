"""Where calls run, on real engines: one, two by turns, two by the planner's placement.

    python -m benchmarks.runtime.engines [--rows 4] [--repeats 2] [--output FILE]

Two CPU engines of one core each, in Ray actors, serve a tiny random Llama whose tokens are bytes.
All placements make the same calls with the same plan. Every run has a ``cache_salt`` of its own, so
it finds nothing of the runs before it. Prompt tokens computed are those that the engines report;
prewarming is off, because what it computes belongs to no call. Outputs are compared; they must be
equal. Source of the workflows: Helium, §7.

How calls meet in a batch differs from run to run; the repeats show by how much that moves figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.results_file import environment, write_results
from benchmarks.runtime.placement import DEFAULT_WORKFLOWS, PLACEMENTS, RoundRobin
from benchmarks.workflows import WORKFLOWS
from helium.optimizer.driver import optimize
from helium.planner import WorkflowPlan, plan_workflow
from helium.runtime import EngineBackend, RunResult, run_plan
from helium.templates.tokenizer import TransformersTokenizer
from vllm_helium.models.tiny import make_tiny_llama
from vllm_helium.ray_engines import RayBackend, ray_engines

NUM_ENGINES = 2
MAX_MODEL_LEN = 16_384
ENGINE = {
    "block_size": 32,
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 256 << 20,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 64,
    "helium": {"prewarm": False},
}


def plan(
    workflow: str, rows: int, scale: float, max_tokens: int, num_engines: int, tokenizer: Any
) -> WorkflowPlan:
    """Optimizes and plans a workflow for so many engines."""
    workload = WORKFLOWS[workflow](size=rows, scale=scale, max_tokens=max_tokens)
    compiled = optimize(workload.compile()).compiled
    return plan_workflow(compiled, tokenizer, workflow=workload.name, num_engines=num_engines)


async def run_placement(
    placement: str, schedule: WorkflowPlan, engines: Sequence[EngineBackend], salt: str
) -> RunResult:
    """Runs a plan with every call on the engine that ``placement`` says."""
    backends = list(engines[: schedule.num_engines])
    if placement == "round_robin":
        turns = itertools.cycle(range(len(backends)))
        backends = [RoundRobin(engines, turns) for _ in backends]
    result = await run_plan(
        schedule.compiled, backends, schedule=schedule, run=salt, cache_salt=salt
    )
    assert not result.failures, result.failures[0]
    return result


async def measure(options: argparse.Namespace, engines: list[RayBackend], tokenizer: Any) -> Any:
    """Runs every workflow in every placement; returns the figures."""
    figures = []
    for workflow in options.workflow or DEFAULT_WORKFLOWS:
        outputs = []
        for repeat, placement in itertools.product(range(options.repeats), PLACEMENTS):
            num_engines = 1 if placement == "one_engine" else NUM_ENGINES
            schedule = plan(
                workflow, options.rows, options.scale, options.max_tokens, num_engines, tokenizer
            )
            salt = f"{workflow}-{placement}-{repeat}"
            result = await run_placement(placement, schedule, engines, salt)
            outputs.append(result.outputs)
            total = result.total
            num_prefill = total.num_prompt_tokens - total.num_cached_tokens
            figures.append(
                {
                    "workflow": workflow,
                    "placement": placement,
                    "repeat": repeat,
                    "num_engines": num_engines,
                    "rows": options.rows,
                    "scale": options.scale,
                    "max_tokens": options.max_tokens,
                    "num_calls": total.num_calls,
                    "num_prompt_tokens": total.num_prompt_tokens,
                    "num_prefill_tokens": num_prefill,
                    "elapsed_s": result.elapsed_s,
                }
            )
            print(
                f"{workflow:16} {placement:12} {total.num_calls:5} calls {num_prefill:8} of "
                f"{total.num_prompt_tokens:8} prompt tokens computed {result.elapsed_s:7.1f} s",
                flush=True,
            )
        assert all(output == outputs[0] for output in outputs), f"{workflow}: outputs differ"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflow", action="append", choices=list(WORKFLOWS))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--scale", type=float, default=0.1, help="factor on the lengths of texts")
    parser.add_argument("--max-tokens", type=int, default=128, help="of every output")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AutoTokenizer

        model = make_tiny_llama(Path(folder) / "tiny", max_positions=MAX_MODEL_LEN)
        tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(model))
        engines = ray_engines(model, NUM_ENGINES, **ENGINE)
        try:
            figures = asyncio.run(measure(options, engines, tokenizer))
        finally:
            for engine in engines:
                asyncio.run(engine.close())
    if options.output is not None:
        write_results(options.output, {"environment": environment(), "results": figures})


if __name__ == "__main__":
    main()
