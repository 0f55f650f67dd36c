"""Planning time and memory: optimizer, templates and tree, placement and schedule.

Usage: python -m benchmarks.planner.planning_time [--repeats 15] [--tokenizer FOLDER]

Token rendering is inside (a word tokenizer, new for every repetition). ``published`` is Trading-16b
as the paper has it, where the optimizer merges equal branches; ``distinct`` gives every branch its
own prompts, so that nothing merges. With ``--tokenizer``, a model's folder, planning with its
tokenizer is measured too: the first plan probes where static tokens end, later ones remember. An
A/A row repeats the first one: its distance is the noise.

Source: Helium, §7 (< 230 ms and 552 KiB of metadata at 16 branches).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results_file import environment, write_results
from benchmarks.workflows import trading
from helium.cost import Estimates
from helium.optimizer.driver import ALL_ON, optimize
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Llm, Message, Operator, Output, Reference, Sampling
from helium.plan.text import text
from helium.planner import plan_workflow
from helium.planner.lowering import Lowering
from helium.templates import TransformersTokenizer, WordTokenizer

NUM_PROCESSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokenizer", type=Path, help="folder of a Hugging Face tokenizer")
    parser.add_argument("--digest", action="store_true", help="print the plans' digest and exit")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/planner_planning_time.json")
    )
    arguments = parser.parse_args()
    if arguments.digest:
        print(plans_digest())
        return
    published = trading.build(16, num_branches=16).compile()
    distinct = trading.build(16, num_branches=16, distinct=True).compile()
    rows = []
    for name, compiled, engines in (
        *((f"trading-16b published, W={w}", published, w) for w in (1, 2, 8)),
        ("trading-16b published, W=1 (A/A)", published, 1),
        *((f"trading-16b distinct, W={w}", distinct, w) for w in (1, 2, 8)),
        *((f"trading-16b published, {n} rows, W=1", _trading(n), 1) for n in (80, 400, 2_000)),
        ("DAG of 10,000 operators, W=1", large_dag(10_000), 1),
        ("DAG of 10,000 operators, W=8", large_dag(10_000), 8),
    ):
        repeats = arguments.repeats if len(compiled.plan.operators) < 5_000 else 3
        row = {"case": name, **measure(compiled, engines, repeats)}
        rows.append(row)
        phases = ", ".join(f"{k[:-3]} {v:.1f}" for k, v in row.items() if k.endswith("_ms"))
        print(f"{name:42} {row['operators']:6} LLM operators; median ms: {phases}", flush=True)
    memory = {
        f"trading-16b {name}, W={w}": peak_memory(compiled, w)
        for name, compiled in (("published", published), ("distinct", distinct))
        for w in (1, 8)
    }
    for name, found in memory.items():
        print(f"{name:42} peak KiB:", ", ".join(f"{k} {v:.0f}" for k, v in found.items()))
    real = real_tokenizer(published, arguments.tokenizer) if arguments.tokenizer else None
    if real:
        print("trading-16b published, real tokenizer, CPU ms:", real)
    digests = {digest_elsewhere(seed) for seed in range(NUM_PROCESSES)}
    print(f"plan digests over {NUM_PROCESSES} processes: {len(digests)} distinct")
    report = {
        "environment": environment() | {"repeats": arguments.repeats},
        "times": rows,
        "peak_kib": memory,
        "real_tokenizer_cpu_ms": real,
        "distinct_digests": len(digests),
        "processes": NUM_PROCESSES,
    }
    write_results(arguments.output, report)


def measure(compiled: CompiledPlan, num_engines: int, repeats: int) -> dict[str, Any]:
    """Returns medians of the phases; ``total_ms`` is one run through all of them, timed as one.

    ``total_cpu_ms`` is the processor time of the same runs: planning has one thread and waits for
    nothing, so the two differ by what else the machine does.
    """
    totals, cpus, optimizes, lowers, renders, messages = [], [], [], [], [], []
    optimized = compiled
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        optimized = optimize(_fresh(compiled), ALL_ON).compiled
        plan = plan_workflow(optimized, WordTokenizer(), num_engines=num_engines)
        totals.append(time.perf_counter() - start)
        cpus.append(time.process_time() - cpu_start)
        messages.append(_timed(plan.engine_plans))
        optimizes.append(_timed(lambda: optimize(_fresh(compiled), ALL_ON)))
        lowers.append(_timed(lambda: _lower(optimized)))  # noqa: B023
        renders.append(_timed(lambda: _render(optimized)))  # noqa: B023
    return {
        "operators": len(optimized.plan.llm_operators),
        "engines": num_engines,
        "rows": max(len(c) for c in compiled.columns.values()),
        "slices": plan.num_slices,
        "total_ms": 1e3 * statistics.median(totals),
        "total_cpu_ms": 1e3 * statistics.median(cpus),
        "total_best_ms": 1e3 * min(totals),
        "optimize_ms": 1e3 * statistics.median(optimizes),
        "templates_and_tree_ms": 1e3 * statistics.median(lowers),
        "of_which_tokenizing_ms": 1e3 * statistics.median(renders),
        "engine_messages_ms": 1e3 * statistics.median(messages),
    }


def real_tokenizer(compiled: CompiledPlan, folder: Path) -> dict[str, float]:
    """Returns processor time of the first plan with a model's tokenizer, and of the second."""
    from transformers import AutoTokenizer

    optimized = optimize(compiled, ALL_ON).compiled
    tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(folder))
    times = []
    for _ in range(2):
        start = time.process_time()
        plan_workflow(optimized, tokenizer)
        times.append(1e3 * (time.process_time() - start))
    return {"first": times[0], "again": times[1]}


def peak_memory(compiled: CompiledPlan, num_engines: int) -> dict[str, float]:
    """Returns peak and kept KiB of tree and schedule, traced, for a plan already optimized."""
    optimized = optimize(compiled, ALL_ON).compiled
    # Import and cache first; the tokenizer's vocabulary is its own, not the tree's or schedule's.
    tokenizer = WordTokenizer()
    plan_workflow(optimized, tokenizer, num_engines=num_engines)
    tracemalloc.start()
    plan = plan_workflow(optimized, tokenizer, num_engines=num_engines)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.makespan > 0
    return {"peak": peak / 1024, "kept": kept / 1024}


def large_dag(num_operators: int) -> CompiledPlan:
    """Returns layers of 100 operators, each reading three of the layer before."""
    operators: list[Operator] = [Input("q", column="q")]
    width = 100
    sampling = Sampling(max_tokens=128)
    for index in range(num_operators):
        layer, place = divmod(index, width)
        parts: list[str | Reference] = [f"Task {index % 37}: look at ", Reference("q")]
        if layer:
            for step in (0, 1, 7):
                producer = (layer - 1) * width + (place + step) % width
                parts += [f" and part {step} is ", Reference(f"op{producer}")]
        message = Message("user", text(*parts))
        operators.append(Llm(f"op{index}", messages=(message,), sampling=sampling))
    last = range(num_operators - width, num_operators)
    operators += [Output(f"out{index}", source=f"op{index}") for index in last]
    return bind(LogicalPlan(tuple(operators)), {"q": [f"row {row}" for row in range(16)]})


def plans_digest() -> str:
    """Returns a digest of the engines' messages of several plans."""
    digest = hashlib.sha256()
    compiled = optimize(trading.build(16, num_branches=16).compile(), ALL_ON).compiled
    for num_engines in (1, 2, 8):
        plan = plan_workflow(compiled, WordTokenizer(), num_engines=num_engines)
        for message in plan.engine_plans():
            digest.update(message.to_json())
    return digest.hexdigest()


def digest_elsewhere(seed: int) -> str:
    """Returns the digest as a new process finds it, under its own hash seed."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.planner.planning_time", "--digest"],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _trading(num_rows: int) -> CompiledPlan:
    # Short texts: 2,000 rows of the real ones take a gigabyte, and planning only samples them.
    return trading.build(num_rows, num_branches=16, scale=0.05).compile()


def _fresh(compiled: CompiledPlan) -> CompiledPlan:
    """Returns the same binding without what earlier repetitions left cached in it."""
    return CompiledPlan(LogicalPlan(compiled.plan.operators), compiled.columns)


def _lower(compiled: CompiledPlan) -> Lowering:
    tokenizer = WordTokenizer()
    return Lowering(compiled, tokenizer, Estimates(compiled, tokenizer))


class _Stopwatch(WordTokenizer):
    elapsed_s = 0.0

    def encode(self, text: str) -> Any:
        start = time.perf_counter()
        encoding = super().encode(text)
        self.elapsed_s += time.perf_counter() - start
        return encoding


def _render(compiled: CompiledPlan) -> float:
    tokenizer = _Stopwatch()
    Lowering(compiled, tokenizer, Estimates(compiled, tokenizer))
    return tokenizer.elapsed_s


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = call()
    return result if isinstance(result, float) else time.perf_counter() - start


if __name__ == "__main__":
    main()
