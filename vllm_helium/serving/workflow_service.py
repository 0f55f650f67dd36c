"""The workflows and runs of one API server: a ``Runtime`` on its engines, and what is on disk.

Runs and workflows are in files, so servers that share a state folder share them: any can list,
watch and cancel what another one runs. The runtime is each server's own: equal calls in flight are
made once per server, and a run stays with the server that took it, until that ends.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from helium.errors import ConfigError, HeliumError
from helium.explain import explain
from helium.optimizer.driver import Switches
from helium.plan.compiled_plan import bind
from helium.plan.functions import REGISTRY, Function
from helium.plan.logical_plan import LogicalPlan
from helium.planner import WorkflowPlan
from helium.runtime import (
    ProfileStore,
    PromptCache,
    RunError,
    RunInfo,
    RunResult,
    RunStore,
    Runtime,
    RunTrace,
)
from helium.runtime.backend import EngineBackend
from helium.runtime.events import CallDelta, Event
from helium.runtime.revisions import Revisions
from helium.runtime.run import Run
from helium.runtime.run_store import WRITTEN
from helium.runtime.stored_result import stored_result
from helium.runtime.telemetry import export_spans
from helium.runtime.watching import POLL_S
from helium.templates.tokenizer import PromptTokenizer
from vllm_helium.serving.limits import check_limits
from vllm_helium.serving.workflow_metrics import WorkflowMetrics
from vllm_helium.serving.workflow_store import WorkflowInfo, WorkflowStore

logger = logging.getLogger(__name__)

MAX_RUNNING = 256
"""Runs under way per server; more are refused with 429."""
MAX_KEPT = 4096
"""Runs that are over and kept for their results; the oldest go first."""
PRUNE_EVERY = 64
"""Runs submitted between two looks for those beyond ``MAX_KEPT``, since a look lists all runs."""
MAX_SCHEDULES = 64
"""Latest runs whose plans are kept as they were made, to be explained."""
_PAGE = 512
"""Events read from disk at a time."""

_T = TypeVar("_T")


class TooManyRuns(HeliumError):
    """The server has as many runs as it takes."""


class ShuttingDown(HeliumError):
    """The server takes on no more runs."""


class WorkflowService:
    """What the routes do; use it on one event loop."""

    def __init__(
        self,
        backends: EngineBackend | Sequence[EngineBackend],
        tokenizer: PromptTokenizer | None,
        state_dir: str | Path | None = None,
        *,
        functions: Mapping[str, Function] = REGISTRY,
        prompt_cache: PromptCache | None = None,
        revision: str | Revisions | None = None,
        has_spans: bool = False,
    ) -> None:
        """Opens the files; without a folder they live as long as the service.

        Args:
            prompt_cache: Answers of earlier calls; the service closes it.
            revision: What the engine serves; needed for the cache.
            has_spans: Whether every run is traced, and exported as OpenTelemetry spans.

        Raises:
            RunError: The files cannot be used.
        """
        self._temporary = None if state_dir else tempfile.TemporaryDirectory(prefix="vllm-helium-")
        folder = Path(self._temporary.name if self._temporary else state_dir or "")
        self.workflows = WorkflowStore(folder / "workflows.db")
        self.runs = RunStore(folder / "runs.db")
        self._functions = functions
        self.metrics = WorkflowMetrics()
        self._has_spans = has_spans
        self._schedules: dict[str, WorkflowPlan] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._num_submitted = 0
        self._is_leaving = False
        self._is_pruning = False
        self._cache = prompt_cache
        self._runtime = Runtime(
            backends,
            tokenizer,
            store=self.runs,
            profiles=ProfileStore(folder / "profiles"),
            functions=functions,
            prompt_cache=prompt_cache,
            revision=revision,
        )

    async def close(self) -> None:
        """Leaves off what is under way; with a state folder the next server goes on with it."""
        await self._runtime.close()
        self.runs.close()
        self.workflows.close()
        if self._cache is not None:
            self._cache.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    async def leave_off(self) -> None:
        """Leaves off what is under way and takes on no more: the engine is about to go."""
        self._is_leaving = True
        await self._runtime.leave_off()

    async def resume_all(self) -> None:
        """Goes on with every interrupted run; one that cannot be is left as it is."""
        for info in await self.disk(self.runs.runs):
            if info.status != "interrupted" or self._is_leaving:
                continue
            try:
                self._follow(info.workflow, await self._runtime.resume(info.id))
                logger.info("run %s goes on", info.id)
            except HeliumError as error:
                logger.warning("run %s does not go on: %s", info.id, error)
            except Exception:  # a mistake of ours must not keep the others waiting
                logger.exception("run %s does not go on", info.id)

    async def register(self, name: str, plan: LogicalPlan) -> WorkflowInfo:
        """Registers a workflow that this server can run; again changes nothing.

        Raises:
            WorkflowError: It calls a function that is not registered here.
        """
        bind(_without_inputs(plan), {}, functions=self._functions)
        return await self.disk(self.workflows.add, name, plan)

    async def submit(
        self,
        workflow: str,
        plan: LogicalPlan,
        inputs: Mapping[str, str | list[str]],
        *,
        run: str | None = None,
        switches: Switches | None = None,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Starts a run, or goes on with the one of this id; returns its id.

        Raises:
            WorkflowError: The inputs do not fit, or the run is too large.
            RunError: The id belongs to another request.
            TooManyRuns: Too many runs are under way.
            ShuttingDown: The server is about to end.
        """
        if self._is_leaving:
            raise ShuttingDown("the server shuts down; ask again when it is back")
        loop = asyncio.get_running_loop()
        compiled = bind(plan, inputs, functions=self._functions)
        await loop.run_in_executor(None, check_limits, compiled)
        if self._runtime.num_running >= MAX_RUNNING:
            raise TooManyRuns(f"{MAX_RUNNING} runs are under way; wait until some are over")
        self._num_submitted += 1  # before anything waits: others submit meanwhile
        if self._num_submitted % PRUNE_EVERY == 1 and not self._is_pruning:
            await self._prune()
        started = await self._runtime.submit(
            plan,
            inputs,
            name=workflow,
            run=run,
            switches=switches or Switches(),
            cache_salt=cache_salt,
            timeout_s=timeout_s,
            resume=run is not None,
        )
        self._follow(workflow, started)
        return started.id

    def _follow(self, workflow: str, run: Run) -> None:
        if any(task.get_name() == run.id for task in self._followers):
            return  # asked for again while it goes on
        if run.schedule is not None and not run.num_earlier_events:
            self._schedules[run.id] = run.schedule
            if len(self._schedules) > MAX_SCHEDULES:
                del self._schedules[next(iter(self._schedules))]
        trace = None
        if self._has_spans:
            trace = RunTrace()
            trace.follow(run)  # now: the run's first event is told when this task waits
        task = asyncio.create_task(self._observe(workflow, run, trace), name=run.id)
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _observe(self, workflow: str, run: Run, trace: RunTrace | None) -> None:
        await self.metrics.follow(workflow, run)
        if trace is not None:
            await asyncio.get_running_loop().run_in_executor(None, export_spans, trace)

    async def wait(self, run: str) -> None:
        """Waits until a run that was submitted here is over."""
        running = self._runtime.running(run)
        if running is not None:
            await asyncio.gather(running.result(), return_exceptions=True)

    async def cancel(self, run: str) -> None:
        """Cancels a run, here at once; one that is over stays as it is."""
        running = self._runtime.running(run)
        if running is not None:
            running.cancel()
            await self.wait(run)
        elif (await self.disk(self.runs.info, run)).status == "running":
            await self.disk(self.runs.request_cancel, run)

    async def result(self, run: str) -> RunResult:
        """Returns what is done of a run."""
        return await self.disk(stored_result, self.runs, run)

    async def explain(self, run: str, format: str) -> str:
        """Explains a run's plan, with measured figures once it is over."""
        plan = self._schedules.get(run) or await self._runtime.plan(run)
        if plan is None:
            return "the run makes no calls\n"
        info = await self.disk(self.runs.info, run)
        measured = None
        if info.status not in ("running", "interrupted"):
            counts = (await self.result(run)).counts
            measured = {name: one.measured() for name, one in counts.items()}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            None, lambda: explain(plan, format, analyze=measured, show_times=False)
        )

    async def events(
        self, run: str, after: int = 0, *, with_deltas: bool = False
    ) -> AsyncIterator[tuple[int | None, Event | CallDelta]]:
        """Yields a run's events after its event number ``after``, until nobody works on it.

        Written events are numbered from 1 through all sittings of a run; the others, of a run under
        way here, have no number.

        Args:
            with_deltas: Whether to tell how the outputs of calls under way here grow.
        """
        number = 0
        running = self._runtime.running(run)
        last = None if running is None else running.num_earlier_events
        while True:
            is_live = running is not None
            status = "over" if is_live else (await self.disk(self.runs.info, run)).status
            async for event in self._written(run, number, last):
                number += 1
                if number > after:
                    yield number, event
            if status != "running":
                break
            await asyncio.sleep(POLL_S)
        if running is not None:
            async for numbered in _live(running, number, after, with_deltas):
                yield numbered

    async def _written(self, run: str, skip: int, last: int | None) -> AsyncIterator[Event]:
        row, number = 0, 0
        while page := await self.disk(self.runs.events, run, row, _PAGE):
            row = page[-1][0]
            for _, event in page:
                number += 1
                if last is not None and number > last:
                    return
                if number > skip:
                    yield event

    async def disk(self, work: Callable[..., _T], *args: Any) -> _T:
        """Uses a file off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(None, work, *args)

    async def _prune(self) -> None:
        self._is_pruning = True
        try:
            infos: list[RunInfo] = await self.disk(self.runs.runs)
            over = [info for info in infos if info.status not in ("running", "interrupted")]
            for info in over[: max(0, len(over) - MAX_KEPT)]:
                try:
                    await self.disk(self.runs.delete, info.id)
                except RunError as error:
                    logger.warning("%s", error)
        finally:
            self._is_pruning = False


async def _live(
    run: Run, number: int, after: int, with_deltas: bool
) -> AsyncIterator[tuple[int | None, Event | CallDelta]]:
    async for event in run.events_and_deltas() if with_deltas else run.events():
        if isinstance(event, WRITTEN):
            number += 1
            if number > after:
                yield number, event
        elif number >= after:
            yield None, event


def _without_inputs(plan: LogicalPlan) -> LogicalPlan:
    """Returns the plan's functions alone: registering knows no batch."""
    from helium.plan.operators import Lambda

    lambdas = [
        msgspec.structs.replace(operator, arguments=())
        for operator in plan.operators
        if isinstance(operator, Lambda)
    ]
    return LogicalPlan(tuple(lambdas))


def import_functions(modules: str) -> None:
    """Imports comma-separated modules for the functions they register.

    Raises:
        ConfigError: One cannot be imported.
    """
    for module in filter(None, (name.strip() for name in modules.split(","))):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module does while it is imported
            raise ConfigError(
                f"helium.functions: module {module!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
