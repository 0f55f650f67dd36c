"""Runs workloads on one real engine as a system does, in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines.dataflow import Ask, run_dataflow
from benchmarks.baselines.orders import ORDERS, ordered, unordered
from benchmarks.baselines.parrot import ParrotDispatcher
from benchmarks.baselines.system_runner import with_context
from benchmarks.baselines.systems import System
from benchmarks.gpu.fixed_lengths import FixedLengthEngine, Lengths, TimedCall, learned_profile
from benchmarks.workflows import Workload
from helium.cost import TokenStepModel
from helium.errors import ConfigError, EngineError
from helium.optimizer.driver import Switches, optimize
from helium.plan.compiled_plan import CompiledPlan
from helium.planner import WorkflowPlan, plan_workflow
from helium.runtime import EngineBackend, run_plan
from helium.templates.tokenizer import PromptTokenizer
from vllm_helium.simulator.figures import quantile


@dataclass(frozen=True)
class Engine:
    """A real engine as systems see it.

    Attributes:
        kv_capacity_tokens: Tokens its KV cache holds.
        has_seeds: Whether it can draw a call's words by a seed.
    """

    backend: EngineBackend
    tokenizer: PromptTokenizer
    kv_capacity_tokens: int
    has_seeds: bool = True


def run_system(
    system: System, workload: Workload, engine: Engine, lengths: Lengths, limit_s: float
) -> dict[str, Any]:
    """Runs a workload once; returns its figures.

    ``status`` is ``done``, or ``cut off`` where the run took longer than ``limit_s``: its calls are
    then aborted, and the figures are of what was done by then.

    Raises:
        EngineError: A call failed.
        ConfigError: The system contradicts itself.
    """
    profile = learned_profile(workload, lengths)  # from a sample run, outside of the timer
    backend = FixedLengthEngine(engine.backend, lengths, system.has_context, engine.has_seeds)
    compiled = workload.compile()
    started_s = time.perf_counter()
    planning_s = 0.0
    if system.order == "plan":
        if system.is_optimized:
            compiled = optimize(compiled, Switches().without(*system.rules_off), None).compiled
        schedule = _plan(workload.name, compiled, profile, engine)
        planning_s = time.perf_counter() - started_s
        program = _run_planned(system, compiled, schedule, backend)
    else:
        if system.is_optimized:
            raise ConfigError(f"system {system.name!r}: is_optimized needs order 'plan'")
        ask = _ask(system, workload.name, compiled, profile, engine, backend)
        planning_s = time.perf_counter() - started_s
        program = run_dataflow(compiled, ask)
    is_done = asyncio.run(_within(program, limit_s))
    return {
        "status": "done" if is_done else "cut off",
        "makespan_s": time.perf_counter() - started_s,
        "planning_s": planning_s,
        **figures_of(backend.calls),
        "num_unanswered_calls": backend.num_started - len(backend.calls),
    }


def figures_of(calls: Sequence[TimedCall]) -> dict[str, Any]:
    """Sums calls up; latencies in seconds, ``None`` without any call."""
    latencies = [call.end_s - call.start_s for call in calls]
    num_prompt = sum(call.num_prompt_tokens for call in calls)
    num_cached = sum(call.num_cached_tokens for call in calls)
    return {
        "num_calls": len(calls),
        "num_prompt_tokens": num_prompt,
        "num_cached_tokens": num_cached,
        "num_missed_tokens": num_prompt - num_cached,
        "hit_ratio": num_cached / num_prompt if num_prompt else 0.0,
        "num_output_tokens": sum(call.num_output_tokens for call in calls),
        "latency_p50_s": quantile(latencies, 0.5) if calls else None,
        "latency_p95_s": quantile(latencies, 0.95) if calls else None,
    }


async def _within(program: Any, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s) as limit:
            await program
    except TimeoutError:
        if limit.expired():
            return False
        raise
    return True


async def _run_planned(
    system: System, compiled: CompiledPlan, schedule: WorkflowPlan, backend: FixedLengthEngine
) -> None:
    result = await run_plan(compiled, [backend], schedule=schedule, run="measured")
    if result.failures:
        failure = result.failures[0]
        raise EngineError(
            f"{system.name}: {len(result.failures)} rows failed; operator {failure.operator!r}, "
            f"row {failure.row}: {failure.reason}"
        )


def _plan(
    name: str, compiled: CompiledPlan, profile: Any, engine: Engine, policy: str = "helium"
) -> WorkflowPlan:
    return plan_workflow(
        compiled,
        engine.tokenizer,
        workflow=name,
        profile=profile,
        model=TokenStepModel(engine.kv_capacity_tokens),
        policy=policy,
    )


def _ask(
    system: System,
    name: str,
    compiled: CompiledPlan,
    profile: Any,
    engine: Engine,
    backend: FixedLengthEngine,
) -> Ask:
    if system.order == "parrot":
        return ParrotDispatcher([backend]).ask
    if system.order in ORDERS:
        return ordered(system.order, compiled, [backend])
    if system.order != "dataflow":
        raise ConfigError(f"system {system.name!r}: unknown order {system.order!r}")
    if not system.has_context:
        return unordered(compiled, [backend])
    has_ranks = system.helium is not None
    schedule = _plan(name, compiled, profile, engine, "helium" if has_ranks else "op_wise")
    return with_context(schedule, [backend], has_ranks)
