"""Writes a run's events, and passes them on once they are safe.

What is told of a run has happened for good: no crash can take it back. The run itself does not
wait, it goes on with the values at hand; what it does while one batch is written makes up the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from helium.runtime.events import Event, Listener
from helium.runtime.run_store import RunError, RunStore


class Checkpoint:
    """A listener between a run and those who watch it.

    Attributes:
        error: Why nothing is written any more, if so.
    """

    def __init__(
        self,
        store: RunStore,
        run: str,
        thread: Executor,
        publish: Listener,
        failed: Callable[[RunError], None],
    ) -> None:
        """Starts nothing.

        Args:
            thread: Where the store is used, so that the event loop never waits for the disk.
            publish: Told of every event after it was written.
            failed: Told once, when something cannot be written. What was not written by then is
                never published.
        """
        self.error: RunError | None = None
        self._store = store
        self._run = run
        self._thread = thread
        self._publish = publish
        self._failed = failed
        self._pending: list[Event] = []
        self._writer: asyncio.Task[None] | None = None

    def record(self, event: Event) -> None:
        """Takes an event; returns at once."""
        if self.error is not None:
            return
        self._pending.append(event)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def drain(self) -> None:
        """Waits until everything is written, or cannot be."""
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                await loop.run_in_executor(self._thread, self._store.append, self._run, batch)
            except RunError as error:
                self.error = error
                self._pending.clear()
                self._failed(error)
                break
            for event in batch:
                self._publish(event)
        self._writer = None
