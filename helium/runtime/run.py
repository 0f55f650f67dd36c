"""A run under way, as its owner sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from helium.errors import HeliumError
from helium.runtime.deltas import Deltas
from helium.runtime.events import CallDelta, Event, Listener, RunFinished
from helium.runtime.execution import Execution
from helium.runtime.result import RunResult

LOOK_S = 0.05
"""Pause between two looks at running calls: what reads as a stream, and costs next to nothing."""
_PAUSE_RATIO = 20
"""Pause after a look, over the time the look took: few per cent of the event loop at most."""


class RunProgress(NamedTuple):
    """LLM calls answered or failed, of those the run makes."""

    num_done: int
    num_calls: int


class Run:
    """A run that goes on by itself.

    Attributes:
        id: What it is resumed, watched and cancelled by.
        request_digest: Of what was asked for, see ``request_digest``.
        num_earlier_events: Events written before this process took the run on.
        schedule: The plan it runs on; ``None`` where none was made.
    """

    def __init__(
        self, run: str, execution: Execution, request_digest: str = "", num_earlier_events: int = 0
    ) -> None:
        self.id = run
        self.request_digest = request_digest
        self.num_earlier_events = num_earlier_events
        self.schedule = execution.schedule
        self._execution = execution
        self._listeners: list[Listener] = []
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._is_closed = False
        self._task: asyncio.Task[RunResult] | None = None

    @property
    def progress(self) -> RunProgress:
        """How far it is."""
        return RunProgress(self._execution.num_calls_done, self._execution.num_calls)

    async def events(self) -> AsyncIterator[Event]:
        """Yields every event from the beginning to the end; several may listen, at any time.

        With a checkpoint an event comes when it is safe on disk. The last one is ``RunFinished``,
        unless the run breaks off: then ``result`` raises the reason.
        """
        position = 0
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._is_closed:
                return
            await self._news.wait()

    async def events_and_deltas(self) -> AsyncIterator[Event | CallDelta]:
        """Yields what ``events`` does, and between it how the outputs of running calls grow.

        All deltas of a call come before the event that ends it. Calls that join an equal one under
        way have its deltas too; those answered by the prompt cache have none.

        The engines are asked as often as the consumer keeps up with, at most every ``LOOK_S``
        seconds; a run nobody asks about does no work for it, and none ever waits for a consumer.
        """
        clock = asyncio.get_running_loop().time
        position, next_look_s, deltas = 0, clock(), Deltas()
        while True:
            while position < len(self._events):
                event = self._events[position]
                position += 1
                for delta in deltas.end(event):
                    yield delta
                yield event
            if self._is_closed:
                return
            if clock() < next_look_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_look_s):
                        await self._news.wait()
                continue
            started_s = clock()
            grown = [
                delta
                for operator, row, texts in self._execution.texts()
                for delta in deltas.grow(operator, row, texts)
            ]
            pause_s = max(LOOK_S, _PAUSE_RATIO * (clock() - started_s))
            for delta in grown:
                yield delta
            next_look_s = clock() + pause_s

    async def result(self) -> RunResult:
        """Waits for the end. Being cancelled while waiting does not cancel the run.

        Raises:
            EngineError: An engine could not be reached to register the plan.
            RunError: The checkpoint could not be written; the run can be resumed.
        """
        assert self._task is not None, "the run was not started"
        return await asyncio.shield(self._task)

    def cancel(self, reason: str = "the run was cancelled") -> None:
        """Ends the run: what is under way fails with the reason, what is done stays done."""
        self._execution.stop(reason, "cancelled")

    def listen(self, listener: Listener) -> None:
        """Tells a listener of every event from now on as it happens, before it is safe on disk.

        Right after ``submit`` or ``resume`` returned, that is every event.
        """
        self._listeners.append(listener)

    def happened(self, event: Event) -> None:
        """Tells the listeners."""
        for listener in self._listeners:
            listener(event)

    def publish(self, event: Event) -> None:
        """Tells everyone who listens."""
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Ends every listening; nothing is published afterwards."""
        self._is_closed = True
        self._wake()

    def start(self, task: asyncio.Task[RunResult]) -> None:
        """Takes the task that carries the run out."""
        self._task = task
        task.add_done_callback(_note_error)

    async def abandon(self) -> None:
        """Stops working on the run as if the process had ended: it can be resumed."""
        assert self._task is not None, "the run was not started"
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_over(self) -> bool:
        """Whether ``result`` returns at once."""
        return self._task is not None and self._task.done()

    @property
    def status(self) -> str:
        """As in ``RunInfo``."""
        last = self._events[-1] if self._events else None
        if isinstance(last, RunFinished):
            return last.status
        return "interrupted" if self._is_closed else "running"

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _note_error(task: asyncio.Task[RunResult]) -> None:
    """Marks a run's own errors as seen: who wants to know asks for the result."""
    if not task.cancelled() and isinstance(task.exception(), HeliumError):
        return
