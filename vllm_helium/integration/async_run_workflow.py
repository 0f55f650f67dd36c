"""Hook ``async-run-workflow``: ``await AsyncLLM.run_workflow(graph, inputs)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helium.dsl.graph import Graph
    from helium.plan.logical_plan import LogicalPlan
    from helium.runtime.result import RunResult


async def run_workflow(
    async_llm: Any,
    graph: Graph | LogicalPlan,
    inputs: Mapping[str, str | Sequence[str]],
    **arguments: Any,
) -> RunResult:
    """Runs a workflow beside whatever else the engine serves; as ``LLM.run_workflow``.

    Several may run at once. Being cancelled leaves the run off and aborts its calls; with a store
    it can be gone on with by its id.

    Raises:
        WorkflowError: The inputs do not fit the graph.
        RunError: The run id belongs to another request, or the store cannot be used.
        EngineGone: The engine has died; the run goes on by its id on another engine.
    """
    from vllm_helium.async_backend import async_backends
    from vllm_helium.workflow_run import WorkflowArguments, carry_out

    how = WorkflowArguments(**arguments)
    backends = async_backends(async_llm)
    config, tokenizer = async_llm.vllm_config, async_llm.get_tokenizer()
    return await carry_out(backends, config, tokenizer, graph, inputs, how)
