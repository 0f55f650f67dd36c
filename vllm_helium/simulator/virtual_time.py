"""An asyncio event loop in virtual time.

A program runs until every task waits for something; only then time passes, up to the next timer or
the next event of the world (an engine that ends a step), whichever comes first. Whatever is ready
at one moment has therefore been done before the next: calls that become ready together are all
submitted before an engine schedules its next step.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from helium.errors import EngineError

_T = TypeVar("_T")


class VirtualClock:
    """Seconds since the start of the simulation; only the loop moves it.

    Has the functions of the module ``time`` that engine code calls, see ``as_time``.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        """Returns virtual seconds since the start."""
        return self._now_s

    time = monotonic = now

    def advance_to(self, moment_s: float) -> None:
        """Moves on; time never goes back."""
        assert moment_s >= self._now_s, f"{moment_s} s is before {self._now_s} s"
        self._now_s = moment_s

    @contextmanager
    def as_time(self) -> Iterator[None]:
        """Makes this fork's engine modules read this clock where they ask ``time``."""
        modules = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("vllm_helium.")
            and name != __name__
            and getattr(module, "time", None) is time
        ]
        for module in modules:
            module.time = self
        try:
            yield
        finally:
            for module in modules:
                module.time = time


class World(Protocol):
    """What happens beside the program: engines that end their steps."""

    def prepare(self) -> None:
        """Starts what can start now; called when the program waits for something."""

    def next_event_s(self) -> float | None:
        """Returns when something happens next, or ``None`` if nothing is under way."""

    def happen(self) -> None:
        """Lets the event that is due happen."""


def run(program: Callable[[], Coroutine[Any, Any, _T]], clock: VirtualClock, world: World) -> _T:
    """Runs an asyncio program in virtual time and returns its result.

    Functions sent to threads (``asyncio.to_thread``) run at once, on the loop, and take no time.

    Raises:
        EngineError: The program waits for something that will never happen.
    """
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock, world)) as runner, clock.as_time():
        return runner.run(program())


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock, world: World) -> None:
        self._clock = clock
        super().__init__(_WorldSelector(clock, world))

    def time(self) -> float:
        return self._clock.now()

    def run_in_executor(
        self, executor: Any, function: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _WorldSelector(selectors.DefaultSelector):
    """Asked for input when no callback is ready: the moment to let time pass."""

    def __init__(self, clock: VirtualClock, world: World) -> None:
        super().__init__()
        self._clock = clock
        self._world = world

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)  # signals wake the loop through a socket
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self._world.prepare()
        event_s = self._world.next_event_s()
        timer_s = None if timeout is None else self._clock.now() + timeout
        if event_s is not None and (timer_s is None or event_s <= timer_s):
            self._clock.advance_to(event_s)
            self._world.happen()
        elif timer_s is not None:
            self._clock.advance_to(timer_s)
        else:
            raise EngineError(
                "simulation: the program waits, but no engine works and no timer is set; something "
                "is awaited that nothing in virtual time will bring about"
            )
        return []
