"""Carries one run out, from its first call to its profile."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import NamedTuple

from helium.errors import HeliumError
from helium.plan.functions import Function
from helium.planner.workflow_plan import WorkflowPlan
from helium.runtime.backend import EngineGone
from helium.runtime.checkpoint import Checkpoint
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.events import Event, Listener, RunFinished
from helium.runtime.execution import Execution, RunOptions
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.profile_store import ProfileLearner, ProfileStore
from helium.runtime.result import RunResult
from helium.runtime.run import Run
from helium.runtime.run_lock import RunLock
from helium.runtime.run_store import RunError, RunSpec, RunStore
from helium.templates.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)


class Shared(NamedTuple):
    """What the runs of a runtime have in common.

    Attributes:
        disk: The thread that uses the store.
        background: The thread for what nobody waits for.
    """

    dispatcher: Dispatcher
    threads: FunctionThreads
    functions: Mapping[str, Function]
    tokenizer: PromptTokenizer | None
    store: RunStore | None
    profiles: ProfileStore | None
    disk: Executor
    background: Executor


class Driver:
    """One run with its checkpoint and its lessons; drive it once.

    Attributes:
        run: What its owner sees.
    """

    def __init__(
        self,
        shared: Shared,
        run: str,
        spec: RunSpec,
        schedule: WorkflowPlan | None,
        lock: RunLock | None,
        num_earlier_events: int = 0,
    ) -> None:
        """Starts nothing.

        Args:
            lock: Held until the run is over, where there is a store.
            num_earlier_events: Of the run, in the store.

        Raises:
            PlanError: The schedule is for another number of engines.
        """
        self._shared = shared
        self._spec = spec
        self._lock = lock
        self._learner = ProfileLearner(spec.compiled, shared.tokenizer)
        options = RunOptions(
            cache_salt=spec.cache_salt,
            functions=shared.functions,
            function_timeout_s=spec.function_timeout_s,
            timeout_s=spec.timeout_s,
            has_hints=shared.tokenizer is not None,
            on_event=self._happened,
        )
        self._execution = Execution(
            spec.compiled, shared.dispatcher, shared.threads, run, schedule, options
        )
        self.run = Run(run, self._execution, spec.request_digest, num_earlier_events)
        self._checkpoint: Checkpoint | None = None
        self._tell: Listener = self.run.publish
        if shared.store is not None:
            self._checkpoint = Checkpoint(
                shared.store, run, shared.disk, self.run.publish, self._cannot_write
            )
            self._tell = self._checkpoint.record

    async def drive(self) -> RunResult:
        """Runs to the end; being cancelled leaves the run off, to be resumed.

        Raises:
            EngineGone: All engines have died; the run is left off.
            EngineError: An engine could not be reached to register the plan.
            RunError: The checkpoint could not be written.
        """
        try:
            result = await self._execution.execute()
        except EngineGone:
            raise  # as if this process had died with it: the run stays to be gone on with
        except HeliumError:
            self._tell(RunFinished("failed", 0))
            raise
        finally:
            if self._checkpoint is not None:
                await self._checkpoint.drain()
        if self._checkpoint is not None and self._checkpoint.error is not None:
            raise self._checkpoint.error
        return result

    def finish(self) -> None:
        """Ends listening, lets others have the run, and saves what it taught, in a while."""
        self.run.close()
        if self._lock is not None:
            self._lock.release()
        if self._shared.profiles is not None:
            self._shared.background.submit(self._learn, self._shared.profiles)

    def _happened(self, event: Event) -> None:
        self._learner.observe(event)
        self.run.happened(event)
        self._tell(event)

    def _cannot_write(self, error: RunError) -> None:
        self._execution.stop(str(error), "failed")

    def _learn(self, profiles: ProfileStore) -> None:
        """Saves what the run taught; without it the next plan is as good as this one."""
        try:
            profiles.add(self._spec.signature, self._learner.learned())
        except OSError as error:
            logger.warning("profiles %s cannot be written: %s", profiles.folder, error)
