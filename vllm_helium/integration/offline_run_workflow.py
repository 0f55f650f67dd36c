"""Hook ``offline-run-workflow``: ``LLM.run_workflow(graph, inputs)``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helium.dsl.graph import Graph
    from helium.plan.logical_plan import LogicalPlan
    from helium.runtime.result import RunResult


def run_workflow(
    llm: Any,
    graph: Graph | LogicalPlan,
    inputs: Mapping[str, str | Sequence[str]],
    **arguments: Any,
) -> RunResult:
    """Optimizes, plans and runs a workflow on an ``LLM``; outputs are the same with Helium off.

    Args:
        inputs: Column -> its values, or one string for all rows.
        **arguments: See ``vllm_helium.workflow_run.WorkflowArguments``: ``workflow``, ``switches``,
            ``cache_salt``, ``run``, ``prompt_cache``, ``store``, ``profiles``, ``options``,
            ``timeout_s``, ``use_tqdm``, ``trace``.

    Raises:
        WorkflowError: The inputs do not fit the graph.
        RunError: The run id belongs to another request, or the store cannot be used.
    """
    from vllm_helium.llm_backend import LLMBackend
    from vllm_helium.workflow_run import WorkflowArguments, carry_out

    how = WorkflowArguments(**arguments)
    config = llm.llm_engine.vllm_config
    with LLMBackend(llm) as backend:
        return _run(carry_out(backend, config, llm.get_tokenizer(), graph, inputs, how))


def _run(coroutine: Coroutine[Any, Any, RunResult]) -> RunResult:
    """Runs a coroutine to its end, also where an event loop runs already (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, "helium-run") as executor:
        return executor.submit(asyncio.run, coroutine).result()
