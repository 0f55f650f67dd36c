"""Following a run that another process works on, through the store they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from helium.runtime.events import Event
from helium.runtime.run_store import RunStore

POLL_S = 1.0
"""How often a process looks for what others have written."""


async def follow(store: RunStore, run: str, thread: Executor | None = None) -> AsyncIterator[Event]:
    """Yields a run's written events from its beginning, until nobody works on it any more.

    Args:
        thread: Where the store is read; the event loop's own threads by default.

    Raises:
        RunError: The run is unknown, or the store cannot be read.
    """
    loop = asyncio.get_running_loop()
    num_seen = 0
    while True:
        # The status first: what is written after it is read the next time.
        info = await loop.run_in_executor(thread, store.info, run)
        events = await loop.run_in_executor(thread, store.events, run, num_seen)
        for number, event in events:
            num_seen = number
            yield event
        if info.status != "running":
            return
        await asyncio.sleep(POLL_S)
