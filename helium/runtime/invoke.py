"""Optimize, plan and run in one call.

Source: Helium, §6 (``invoke``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from helium.cost.profile import Profile
from helium.dsl.graph import Graph
from helium.optimizer.driver import ALL_ON, Switches, optimize
from helium.plan.compiled_plan import CompiledPlan
from helium.planner import WorkflowPlan, plan_workflow
from helium.runtime.backend import EngineBackend
from helium.runtime.execution import Progress
from helium.runtime.processor import run_plan
from helium.runtime.result import RunResult
from helium.templates.tokenizer import PromptTokenizer


def plan(
    compiled: CompiledPlan,
    tokenizer: PromptTokenizer,
    *,
    workflow: str = "workflow",
    profile: Profile | None = None,
    num_engines: int = 1,
    switches: Switches = ALL_ON,
) -> WorkflowPlan:
    """Optimizes a bound workflow and schedules it; see ``optimize`` and ``plan_workflow``."""
    optimized = optimize(compiled, switches).compiled
    return plan_workflow(
        optimized, tokenizer, workflow=workflow, profile=profile, num_engines=num_engines
    )


async def invoke_async(
    graph: Graph,
    batch: Mapping[str, str | Sequence[str]],
    backends: EngineBackend | Sequence[EngineBackend],
    tokenizer: PromptTokenizer,
    *,
    workflow: str = "workflow",
    switches: Switches = ALL_ON,
    cache_salt: str | None = None,
    on_call: Progress | None = None,
) -> RunResult:
    """Runs a workflow over a batch.

    Args:
        batch: Column -> its values, or one string for all rows.
        backends: One engine, or several identical ones.
        tokenizer: That of the engines' model.
        workflow: Name in plans, reports and metrics.
        switches: Which optimizer rules run.
        cache_salt: Tenant of every call.
        on_call: Told of every finished call.

    Raises:
        WorkflowError: The batch does not fit the graph.
        EngineError: An engine cannot be reached.
    """
    num_engines = len(backends) if isinstance(backends, Sequence) else 1
    schedule = plan(
        graph.compile(**batch),
        tokenizer,
        workflow=workflow,
        num_engines=num_engines,
        switches=switches,
    )
    return await run_plan(
        schedule.compiled, backends, schedule=schedule, cache_salt=cache_salt, on_call=on_call
    )


def invoke(
    graph: Graph,
    backends: EngineBackend | Sequence[EngineBackend],
    tokenizer: PromptTokenizer,
    *,
    cache_salt: str | None = None,
    **batch: str | Sequence[str],
) -> RunResult:
    """``invoke_async`` for callers without an event loop; columns are keyword arguments."""
    return asyncio.run(invoke_async(graph, batch, backends, tokenizer, cache_salt=cache_salt))
