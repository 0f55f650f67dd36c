"""User functions on threads of their own, where a slow or stuck one harms nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

from helium.plan.functions import Function
from helium.plan.unicode import NO_UNICODE, is_unicode
from helium.runtime.lane import Lane

_T = TypeVar("_T")

MAX_OPEN_FUNCTIONS = 32
"""Functions under way at once; enough for functions that wait for something."""


class FunctionFailed(Exception):
    """A user function raised, took too long or returned no text; the message says which."""


class FunctionJob:
    """One call of a function.

    Args:
        done: Told the text, or why there is none; never after ``cancel``.
    """

    __slots__ = ("arguments", "done", "function", "is_cancelled", "name", "timeout_s")

    def __init__(
        self,
        name: str,
        function: Function,
        arguments: Sequence[str | list[str]],
        timeout_s: float,
        done: Callable[[str | FunctionFailed], None],
    ) -> None:
        self.name = name
        self.function = function
        self.arguments = arguments
        self.timeout_s = timeout_s
        self.done = done
        self.is_cancelled = False

    def cancel(self) -> None:
        """Forgets the job; a function that runs already cannot be stopped, its result is lost."""
        self.is_cancelled = True


class FunctionThreads:
    """Runs functions, up to a number at once. The time a job waits for its turn does not count."""

    def __init__(self, max_open: int = MAX_OPEN_FUNCTIONS) -> None:
        self._threads = DaemonThreads()
        self._lane: Lane[FunctionJob] = Lane(self._run, max_open)

    def submit(self, job: FunctionJob) -> None:
        """Queues a job; needs a running event loop."""
        self._lane.put(job)

    async def close(self) -> None:
        """Drops what waits. Functions under way run on, but nobody hears of them."""
        await self._lane.close()
        self._threads.shutdown(wait=False)

    async def _run(self, job: FunctionJob) -> None:
        if job.is_cancelled:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(job.timeout_s):
                outcome = await loop.run_in_executor(self._threads, _outcome_of, job)
        except TimeoutError:
            outcome = FunctionFailed(f"function {job.name!r} took more than {job.timeout_s} s")
        if not job.is_cancelled:
            job.done(outcome)


def _outcome_of(job: FunctionJob) -> str | FunctionFailed:
    """Calls the function, in its thread.

    Nothing it raises may leave the thread as an exception: an event loop takes ``CancelledError``,
    ``StopIteration`` and ``SystemExit`` as something that happened to itself.
    """
    what = f"function {job.name!r}"
    try:
        result: object = job.function(*job.arguments)
    except BaseException as error:
        told = f"{what} raised {type(error).__name__}: {error}"
        return FunctionFailed(told.encode(errors="backslashreplace").decode())
    if not isinstance(result, str):
        return FunctionFailed(f"{what} returned {type(result).__name__}, expected str")
    if not is_unicode(result):
        return FunctionFailed(f"{what} returned text with half a surrogate pair, {NO_UNICODE}")
    return result


class DaemonThreads(Executor):
    """As many threads as work asks for; an abandoned one keeps neither others nor the exit waiting.

    The standard pool has a fixed number of threads, all of which it joins at exit.
    """

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_idle = 0
        self._num_threads = 0

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Runs ``fn`` on an idle thread, or on a new one."""
        future: Future[_T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._num_idle:
                self._num_idle -= 1
            else:
                self._num_threads += 1
                name = f"helium-function-{self._num_threads}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._inbox.put(work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, each after its function; never waits."""
        for _ in range(self._num_threads):
            self._inbox.put(None)

    def _serve(self) -> None:
        while (work := self._inbox.get()) is not None:
            work()
            del work  # holds the function's result, which may be large
            with self._lock:
                self._num_idle += 1
