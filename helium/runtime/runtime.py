"""Many runs over the same engines: one dispatcher, one prompt cache, checkpoints and profiles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from helium.cost.profile import Profile
from helium.dsl.graph import Graph
from helium.errors import ConfigError, HeliumError
from helium.optimizer.driver import ALL_ON, Switches, optimize
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.functions import REGISTRY, Function
from helium.plan.logical_plan import LogicalPlan
from helium.planner import WorkflowPlan, plan_workflow
from helium.runtime.backend import EngineBackend
from helium.runtime.cache_lookup import CacheLookup
from helium.runtime.dispatcher import MAX_OPEN_CALLS, Dispatcher
from helium.runtime.driver import Driver, Shared
from helium.runtime.events import Event
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.processor import new_run_id
from helium.runtime.profile_store import ProfileStore, workflow_signature
from helium.runtime.prompt_cache import PromptCache
from helium.runtime.request_digest import request_digest
from helium.runtime.result import RunResult
from helium.runtime.retries import RetryPolicy
from helium.runtime.revisions import Revisions, always
from helium.runtime.run import Run
from helium.runtime.run_lock import RunLock
from helium.runtime.run_store import RunError, RunInfo, RunSpec, RunStore
from helium.runtime.watching import POLL_S, follow
from helium.templates.tokenizer import PromptTokenizer, WordTokenizer

logger = logging.getLogger(__name__)


class RuntimeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a runtime.

    Attributes:
        retries: How failed calls are made again.
        call_timeout_s: Seconds one attempt at a call may take; ``None`` waits for ever.
        max_open_calls: Calls under way per engine.
        function_timeout_s: Seconds a user function may take for one row.
        is_planned: Whether runs are scheduled. Without it every call is ordinary traffic of the
            first engine.
    """

    retries: RetryPolicy = RetryPolicy()
    call_timeout_s: float | None = None
    max_open_calls: int = MAX_OPEN_CALLS
    function_timeout_s: float = 60.0
    is_planned: bool = True


class Runtime:
    """Runs workflows on identical engines; an async context manager, used on one event loop.

    Cache, store and profiles belong to the caller and stay open.
    """

    def __init__(
        self,
        backends: EngineBackend | Sequence[EngineBackend],
        tokenizer: PromptTokenizer | None = None,
        *,
        revision: str | Revisions | None = None,
        prompt_cache: PromptCache | None = None,
        store: RunStore | None = None,
        profiles: ProfileStore | None = None,
        functions: Mapping[str, Function] = REGISTRY,
        options: RuntimeOptions | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            tokenizer: That of the engines' model. Without it schedules are made with estimates, and
                engines are not told of them.
            revision: What the engines serve, see ``PromptCache.view``; needed for the cache. Given
                as a function where weights may change while engines run.
            prompt_cache: Answers of earlier deterministic calls.
            store: Where runs are checkpointed; without it they cannot be resumed.
            profiles: What earlier runs taught, and later ones will be taught.
            functions: Where the functions of ``Lambda`` operators are looked up.

        Raises:
            ConfigError: There is no engine, or a cache without a revision.
        """
        if prompt_cache is not None and not revision:
            raise ConfigError(
                "runtime: a prompt cache needs `revision`, a name of everything that shapes the "
                "engines' outputs: model, its revision, precision, chat template"
            )
        self._options = options or RuntimeOptions()
        self._tokenizer = tokenizer
        if revision is None or isinstance(revision, str):
            revision = always(revision or "")
        self._revisions = revision
        self._cache = prompt_cache
        self._store = store
        self._profiles = profiles
        self._functions = functions
        self._dispatcher = Dispatcher(
            backends,
            retries=self._options.retries,
            call_timeout_s=self._options.call_timeout_s,
            max_open_calls=self._options.max_open_calls,
            cache=CacheLookup(prompt_cache, self._revisions) if prompt_cache is not None else None,
        )
        self._disk = ThreadPoolExecutor(1, "helium-runs")
        # Apart from the writes: a long list of runs must not hold up a checkpoint.
        self._reader = ThreadPoolExecutor(1, "helium-runs-read")
        self._planner = ThreadPoolExecutor(1, "helium-planner")
        self._shared = Shared(
            self._dispatcher,
            FunctionThreads(),
            functions,
            tokenizer,
            store,
            profiles,
            self._disk,
            self._planner,
        )
        self._runs: dict[str, Run] = {}
        self._starting: set[str] = set()
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Runtime:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def leave_off(self) -> None:
        """Stops working on all runs; those in a store can be resumed."""
        for run in list(self._runs.values()):
            await run.abandon()

    async def close(self) -> None:
        """Leaves off all runs, which can then be resumed, and ends threads."""
        await self.leave_off()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        await self._dispatcher.close()
        await self._shared.threads.close()
        self._disk.shutdown()
        self._reader.shutdown()
        self._planner.shutdown()

    async def submit(
        self,
        workflow: Graph | LogicalPlan,
        batch: Mapping[str, str | Sequence[str]],
        *,
        name: str = "workflow",
        run: str | None = None,
        switches: Switches = ALL_ON,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
        resume: bool = False,
    ) -> Run:
        """Optimizes, plans and starts a workflow.

        Args:
            batch: Column -> its values, or one string for all rows.
            name: Of the workflow, in plans, lists and metrics.
            run: Id of the run; made up if not given.
            switches: Which optimizer rules run.
            cache_salt: Tenant of every call.
            timeout_s: Seconds the run may take; what is not done by then fails.
            resume: Go on with the run of this id if there is one, here or in the store; it must
                have been asked for the same workflow, batch and tenant.

        Raises:
            WorkflowError: The batch does not fit the workflow.
            RunError: The id is taken, or the store cannot be written.
        """
        if isinstance(workflow, Graph):
            plan, sources = workflow.plan, workflow.sources
        else:
            plan, sources = workflow, {}
        compiled = bind(plan, batch, sources=sources, functions=self._functions)
        run = run or new_run_id()
        digest = request_digest(plan, compiled.columns, cache_salt)
        if resume:
            known = await self._find(run, digest)
            if known is not None:
                return known
        if run in self._runs or run in self._starting:
            raise RunError(f"run {run!r} is running; watch it, or take another id")
        self._starting.add(run)
        try:
            return await self._begin(run, name, plan, compiled, switches, cache_salt, timeout_s)
        finally:
            self._starting.discard(run)

    async def _begin(
        self,
        run: str,
        name: str,
        plan: LogicalPlan,
        compiled: CompiledPlan,
        switches: Switches,
        cache_salt: str | None,
        timeout_s: float | None,
    ) -> Run:
        """Plans a new run, writes it down and starts it; nothing of it is left if that fails."""
        loop = asyncio.get_running_loop()
        view = None
        if self._cache is not None:
            try:
                view = self._cache.view(await self._revisions(), cache_salt)
            except HeliumError as error:
                logger.warning("run %s is planned without the prompt cache: %s", run, error)
        optimized = await loop.run_in_executor(self._planner, optimize, compiled, switches, view)
        spec = RunSpec(
            workflow=name,
            signature=workflow_signature(plan),
            compiled=optimized.compiled,
            cache_salt=cache_salt,
            timeout_s=timeout_s,
            function_timeout_s=self._options.function_timeout_s,
            request_digest=request_digest(plan, compiled.columns, cache_salt),
        )
        schedule = await loop.run_in_executor(self._planner, self._plan, spec)
        if self._store is None:
            return self._start(run, spec, schedule, None)
        # First the lock: a run in the list that nobody works on is an interrupted one.
        lock = self._store.acquire(run)
        created: list[str] = []
        try:
            await loop.run_in_executor(self._disk, self._create, self._store, run, spec, created)
            return self._start(run, spec, schedule, lock)
        except BaseException:
            # The thread may be writing it still; what comes after that takes it back.
            self._disk.submit(self._take_back, self._store, lock, created)
            raise

    @staticmethod
    def _create(store: RunStore, run: str, spec: RunSpec, created: list[str]) -> None:
        store.create(run, spec)
        created.append(run)

    @staticmethod
    def _take_back(store: RunStore, lock: RunLock, created: list[str]) -> None:
        with lock:  # held until it is gone: nobody else may take it up meanwhile
            for run in created:
                try:
                    store.delete(run, lock)
                except RunError as error:
                    logger.warning("a run that did not start is left in the list: %s", error)

    async def run(
        self,
        workflow: Graph | LogicalPlan,
        batch: Mapping[str, str | Sequence[str]],
        *,
        name: str = "workflow",
        switches: Switches = ALL_ON,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Runs a workflow to its end; being cancelled cancels the run. See ``submit``."""
        run = await self.submit(
            workflow,
            batch,
            name=name,
            switches=switches,
            cache_salt=cache_salt,
            timeout_s=timeout_s,
        )
        try:
            return await run.result()
        except asyncio.CancelledError:
            run.cancel()
            raise

    async def resume(self, run: str) -> Run:
        """Goes on with a run of the store: only what is not done, or has failed, is done.

        Raises:
            RunError: The run is unknown or running, or the store cannot be read.
            WorkflowError: A function of the workflow is not registered here.
        """
        store = self._require_store()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, store.info, run)
        lock = store.acquire(run)
        try:
            spec = await loop.run_in_executor(self._disk, store.load, run)
            bind(spec.compiled.plan, spec.compiled.columns, functions=self._functions)
            num_events = await loop.run_in_executor(self._disk, store.num_events, run)
            schedule = await loop.run_in_executor(self._planner, self._plan, spec)
            await loop.run_in_executor(self._disk, store.reopen, run)
            return self._start(run, spec, schedule, lock, num_events)
        except BaseException:
            lock.release()
            raise

    def running(self, run: str) -> Run | None:
        """Returns a run that goes on in this runtime."""
        return self._runs.get(run)

    @property
    def num_running(self) -> int:
        """How many runs go on in this runtime."""
        return len(self._runs)

    async def plan(self, run: str) -> WorkflowPlan | None:
        """Returns how a run of the store is scheduled from its beginning; ``None``: no calls.

        Raises:
            RunError: The run is unknown or cannot be read.
        """
        loop = asyncio.get_running_loop()
        spec = await loop.run_in_executor(self._reader, self._require_store().spec, run)
        return await loop.run_in_executor(self._planner, self._plan, spec)

    async def _find(self, run: str, digest: str) -> Run | None:
        """Returns the run of this id, going on; it must have been asked for the same.

        Raises:
            RunError: It was asked for something else, or another process works on it.
        """
        running = self._runs.get(run)
        if running is not None:
            _check_same(run, running.request_digest, digest)
            return running
        if self._store is None:
            return None
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._disk, self._store.find, run):
            return None
        spec = await loop.run_in_executor(self._disk, self._store.spec, run)
        _check_same(run, spec.request_digest, digest)
        return await self.resume(run)

    async def cancel(self, run: str) -> None:
        """Cancels a run of this runtime at once, or asks the process that works on it.

        Raises:
            RunError: The run is unknown or over.
        """
        if run in self._runs:
            self._runs[run].cancel()
            return
        store = self._require_store()
        await asyncio.get_running_loop().run_in_executor(self._disk, store.request_cancel, run)

    async def list(self) -> list[RunInfo]:
        """Returns the runs of the store, the oldest first."""
        store = self._require_store()
        return await asyncio.get_running_loop().run_in_executor(self._reader, store.runs)

    async def watch(self, run: str) -> AsyncIterator[Event]:
        """Yields a run's events from its beginning, also of one that another process works on.

        Ends when nobody works on the run any more. From another process there are only events that
        are written: of calls, functions and failures.

        Raises:
            RunError: The run is unknown.
        """
        if run in self._runs:
            async for event in self._runs[run].events():
                yield event
            return
        async for event in follow(self._require_store(), run, self._reader):
            yield event

    def _require_store(self) -> RunStore:
        if self._store is None:
            raise RunError("this runtime has no store of runs; give it one: store=RunStore(path)")
        return self._store

    def _start(
        self,
        run: str,
        spec: RunSpec,
        schedule: WorkflowPlan | None,
        lock: RunLock | None,
        num_earlier_events: int = 0,
    ) -> Run:
        driver = Driver(self._shared, run, spec, schedule, lock, num_earlier_events)
        loop = asyncio.get_running_loop()
        task = loop.create_task(driver.drive())
        self._runs[run] = driver.run
        # Not in the task itself: one that is cancelled at once never starts.
        task.add_done_callback(lambda _: self._finish(driver))
        driver.run.start(task)
        if self._store is not None and self._poller is None:
            self._poller = loop.create_task(self._poll(self._store))
        return driver.run

    def _finish(self, driver: Driver) -> None:
        del self._runs[driver.run.id]
        driver.finish()

    def _plan(self, spec: RunSpec) -> WorkflowPlan | None:
        """Plans what is left to do, in a thread; ``None`` if that needs no call."""
        compiled = spec.compiled
        if not self._options.is_planned:
            return None
        if not any(compiled.calls(operator.name) for operator in compiled.plan.llm_operators):
            return None
        profile: Profile | None = None
        if self._profiles is not None:
            profile = self._profiles.load(spec.signature)
        return plan_workflow(
            compiled,
            self._tokenizer or WordTokenizer(),
            workflow=spec.workflow,
            profile=profile,
            num_engines=len(self._dispatcher.engines),
        )

    async def _poll(self, store: RunStore) -> None:
        """Cancels what other processes want cancelled; runs only while there are runs."""
        loop = asyncio.get_running_loop()
        while self._runs:
            await asyncio.sleep(POLL_S)
            try:
                wanted = await loop.run_in_executor(self._reader, store.cancel_requests)
            except RunError as error:
                logger.warning("%s", error)
                continue
            for run in wanted & self._runs.keys():
                self._runs[run].cancel()
        self._poller = None


def _check_same(run: str, known: str, asked: str) -> None:
    if known != asked:
        raise RunError(
            f"run {run!r} was asked for another workflow, batch or cache_salt; take another id, or "
            "ask for the same again to go on with it"
        )
