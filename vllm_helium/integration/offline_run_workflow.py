"""Hook ``offline-run-workflow``: ``LLM.run_workflow(graph, inputs)``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helium.dsl.graph import Graph
    from helium.optimizer.driver import Switches
    from helium.runtime.result import RunResult


def run_workflow(
    llm: Any,
    graph: Graph,
    inputs: Mapping[str, str | Sequence[str]],
    *,
    workflow: str = "workflow",
    switches: Switches | None = None,
    cache_salt: str | None = None,
    use_tqdm: bool = True,
) -> RunResult:
    """Optimizes, plans and runs a workflow on an ``LLM``.

    With Helium off no rule rewrites the workflow and nothing is planned: every call is ordinary
    traffic, though equal deterministic calls in flight are still made once. Outputs are the same
    either way.

    Args:
        inputs: Column -> its values, or one string for all rows.
        workflow: Name in plans, reports and metrics.
        switches: Which optimizer rules run; all by default.
        cache_salt: Tenant of every call.
        use_tqdm: Whether to show a progress bar over calls.

    Raises:
        WorkflowError: The inputs do not fit the graph.
    """
    from tqdm import tqdm

    from helium.optimizer.driver import ALL_ON
    from helium.runtime import run_plan
    from helium.runtime.invoke import plan
    from helium.templates.tokenizer import TransformersTokenizer
    from vllm_helium.llm_backend import LLMBackend

    compiled = graph.compile(**inputs)
    schedule = None
    if llm.llm_engine.vllm_config.helium_config is not None:
        tokenizer = TransformersTokenizer(llm.get_tokenizer())
        schedule = plan(compiled, tokenizer, workflow=workflow, switches=switches or ALL_ON)
        compiled = schedule.compiled
    num_calls = sum(len(compiled.calls(op.name)) for op in compiled.plan.llm_operators)
    with (
        tqdm(total=num_calls, desc=workflow, unit="call", disable=not use_tqdm) as bar,
        LLMBackend(llm) as backend,
    ):
        running = run_plan(
            compiled,
            backend,
            schedule=schedule,
            cache_salt=cache_salt,
            on_call=lambda *_: bar.update(),
        )
        return _run(running)


def _run(coroutine: Coroutine[Any, Any, RunResult]) -> RunResult:
    """Runs a coroutine to its end, also where an event loop runs already (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, "helium-run") as executor:
        return executor.submit(asyncio.run, coroutine).result()
