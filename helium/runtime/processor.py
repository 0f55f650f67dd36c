"""The dataflow processor by itself: one plan, run once.

``Runtime`` is for several runs at once, retries, a prompt cache and checkpoints.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from helium.plan.compiled_plan import CompiledPlan
from helium.plan.functions import REGISTRY, Function
from helium.planner.workflow_plan import WorkflowPlan
from helium.runtime.backend import EngineBackend
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.events import Listener
from helium.runtime.execution import Execution, Progress, RunOptions
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.result import RunResult
from helium.runtime.retries import NO_RETRIES


async def run_plan(
    compiled: CompiledPlan,
    backends: EngineBackend | Sequence[EngineBackend],
    *,
    schedule: WorkflowPlan | None = None,
    run: str | None = None,
    cache_salt: str | None = None,
    functions: Mapping[str, Function] = REGISTRY,
    function_timeout_s: float = 60.0,
    timeout_s: float | None = None,
    on_event: Listener | None = None,
    on_call: Progress | None = None,
) -> RunResult:
    """Runs a plan bound to a batch; calls are not retried.

    A row that fails takes only what depends on it along; the rest of the run goes on.

    Args:
        backends: One engine, or as many as the schedule was made for.
        schedule: The planner's: where each call runs, and its rank there. Its messages are
            registered with the engines first. Without it every call is ordinary traffic of the
            first engine.
        run: Id of the run; made up if not given.

    The others are those of ``RunOptions``.

    Raises:
        EngineError: A backend cannot be reached to register the plan.
        PlanError: The schedule is for another number of engines.
    """
    options = RunOptions(
        cache_salt=cache_salt,
        functions=functions,
        function_timeout_s=function_timeout_s,
        timeout_s=timeout_s,
        on_event=on_event,
        on_call=on_call,
    )
    dispatcher = Dispatcher(backends, retries=NO_RETRIES)
    threads = FunctionThreads()
    try:
        execution = Execution(compiled, dispatcher, threads, run or new_run_id(), schedule, options)
        return await execution.execute()
    finally:
        await dispatcher.close()
        await threads.close()


def new_run_id() -> str:
    """Returns an id no other run has."""
    return f"run-{uuid.uuid4().hex[:12]}"
