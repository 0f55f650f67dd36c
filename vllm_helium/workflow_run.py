"""One workflow on the engines of this process: what ``LLM`` and ``AsyncLLM`` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tqdm import tqdm

from helium.dsl.graph import Graph
from helium.errors import ConfigError
from helium.optimizer.driver import ALL_ON, Switches
from helium.plan.logical_plan import LogicalPlan
from helium.runtime import ProfileStore, PromptCache, Run, RunResult, RunStore, Runtime, RunTrace
from helium.runtime.backend import EngineBackend
from helium.runtime.runtime import RuntimeOptions
from helium.runtime.telemetry import export_spans
from helium.templates.tokenizer import TransformersTokenizer
from vllm_helium.model_revision import EngineRevisions

UseTqdm = bool | Callable[..., Any]
"""As in ``LLM.generate``: whether to show a progress bar, or what makes one."""

_T = TypeVar("_T", PromptCache, RunStore)


class WorkflowArguments(msgspec.Struct, frozen=True, kw_only=True):
    """How a workflow is run; the keyword arguments of ``run_workflow``.

    Attributes:
        workflow: Name in plans, reports and metrics.
        switches: Which optimizer rules run; all by default.
        cache_salt: Tenant of every call.
        run: Id of the run. Where the store has it, the run goes on, if it was asked for the same
            workflow, inputs and tenant.
        prompt_cache: Answers of earlier deterministic calls, or the file they are in.
        store: Where the run is checkpointed, or the file; needed to go on with it later.
        profiles: Output lengths of earlier runs, or their folder; improves plans.
        options: Retries, timeouts and limits.
        timeout_s: Seconds the run may take; what is not done by then fails.
        use_tqdm: Whether to show a progress bar over calls.
        trace: Told of the run: EXPLAIN ANALYZE and a Perfetto trace come of it. With upstream's
            ``--otlp-traces-endpoint`` every run is traced, and exported as OpenTelemetry spans.
    """

    workflow: str = "workflow"
    switches: Switches | None = None
    cache_salt: str | None = None
    run: str | None = None
    prompt_cache: PromptCache | str | Path | None = None
    store: RunStore | str | Path | None = None
    profiles: ProfileStore | str | Path | None = None
    options: RuntimeOptions | None = None
    timeout_s: float | None = None
    use_tqdm: UseTqdm = True
    trace: RunTrace | None = None


async def carry_out(
    backends: EngineBackend | Sequence[EngineBackend],
    vllm_config: Any,
    tokenizer: Any,
    graph: Graph | LogicalPlan,
    inputs: Mapping[str, str | Sequence[str]],
    arguments: WorkflowArguments,
) -> RunResult:
    """Runs a workflow to its end.

    With Helium off no rule rewrites the workflow and nothing is planned: every call is ordinary
    traffic, though equal deterministic calls in flight are still made once.

    Raises:
        ConfigError: A run id without a store to find it in.
        WorkflowError: The inputs do not fit the graph.
        RunError: The run belongs to another request, or its store cannot be used.
    """
    if arguments.run is not None and arguments.store is None:
        raise ConfigError(
            f"run {arguments.run!r}: an id needs a store to be found in again; pass store=PATH"
        )
    is_on = vllm_config.helium_config is not None
    # Data-parallel engines are of one model; each can say what all of them serve.
    served: Any = backends[0] if isinstance(backends, Sequence) else backends
    switches = arguments.switches or (ALL_ON if is_on else _ALL_OFF)
    options = arguments.options or RuntimeOptions()
    profiles = arguments.profiles
    if isinstance(profiles, (str, Path)):
        profiles = ProfileStore(profiles)
    with ExitStack() as opened:
        runtime = Runtime(
            backends,
            TransformersTokenizer(tokenizer) if is_on else None,
            revision=EngineRevisions(vllm_config, tokenizer, served),
            prompt_cache=_open(opened, PromptCache, arguments.prompt_cache),
            store=_open(opened, RunStore, arguments.store),
            profiles=profiles,
            options=options if is_on else msgspec.structs.replace(options, is_planned=False),
        )
        async with runtime:
            run = await runtime.submit(
                graph,
                inputs,
                name=arguments.workflow,
                run=arguments.run,
                switches=switches,
                cache_salt=arguments.cache_salt,
                timeout_s=arguments.timeout_s,
                resume=arguments.run is not None,
            )
            has_spans = bool(vllm_config.observability_config.otlp_traces_endpoint)
            trace = arguments.trace or (RunTrace() if has_spans else None)
            if trace is not None:
                trace.follow(run)
            try:
                await _show(run, arguments)
                return await run.result()
            finally:
                if trace is not None and has_spans:
                    export_spans(trace)


_ALL_OFF = ALL_ON.without(*ALL_ON.__struct_fields__)


def _open(opened: ExitStack, kind: type[_T], given: _T | str | Path | None) -> _T | None:
    if isinstance(given, (str, Path)):
        return opened.enter_context(closing(kind(given)))
    return given


async def _show(run: Run, arguments: WorkflowArguments) -> None:
    """Keeps a progress bar up to date until the run is over, with tokens per second as it goes."""
    if not arguments.use_tqdm or not run.progress.num_calls:
        return
    with _bar(run, arguments) as show:
        num_input = num_output = 0
        async for event in run.events():
            num_input += getattr(event, "num_prompt_tokens", 0)
            num_output += getattr(event, "num_output_tokens", 0)
            show(num_input, num_output)


@contextmanager
def _bar(run: Run, arguments: WorkflowArguments) -> Iterator[Callable[[int, int], None]]:
    make = arguments.use_tqdm if callable(arguments.use_tqdm) else tqdm
    started = time.perf_counter()
    bar = make(total=run.progress.num_calls, desc=arguments.workflow, unit="call")

    def show(num_input: int, num_output: int) -> None:
        num_new = run.progress.num_done - bar.n
        if num_new > 0:
            elapsed_s = max(time.perf_counter() - started, 1e-6)
            bar.set_postfix_str(
                f"in {num_input / elapsed_s:.0f} tok/s, out {num_output / elapsed_s:.0f} tok/s",
                refresh=False,
            )
            bar.update(num_new)

    try:
        yield show
    finally:
        bar.close()
