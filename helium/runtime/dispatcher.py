"""Between runs and engines: equal calls are made once, failed ones again.

All runs of a runtime share one dispatcher, so an equal deterministic call of another run is as good
as one's own. Nobody who waits for a shared call can spoil it for the others: it is cancelled when
the last of them is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from helium.errors import ConfigError, EngineError
from helium.runtime.backend import EngineBackend, EngineUnavailable, ModelAnswer, ModelCall
from helium.runtime.cache_lookup import CacheLookup
from helium.runtime.lane import Lane
from helium.runtime.retries import RetryBudget, RetryPolicy

logger = logging.getLogger(__name__)

MAX_OPEN_CALLS = 2048
"""Calls an engine is given at once: more than any batch holds, fewer than a process has sockets."""

Origin = Literal["engine", "shared", "prompt_cache"]
"""Where an answer came from: a call of one's own, an equal call of somebody, or the cache."""

Key = tuple[str | None, bytes]
"""What equal calls have in common: the tenant and every field of the call."""


class Receiver(Protocol):
    """Who makes calls. All of it is called on the event loop and must not raise."""

    def started(self, ticket: Ticket, engine: int) -> None:
        """The call goes to an engine; not told of calls that join one under way."""

    def finished(self, ticket: Ticket, outcome: ModelAnswer | EngineError, origin: Origin) -> None:
        """The call has its outcome; told once, and never after ``cancel``."""


class Ticket:
    """One call somebody waits for.

    Attributes:
        operator: Operator the call is made for.
        row: Row the call is made for.
    """

    __slots__ = ("operator", "receiver", "request", "row")

    def __init__(self, request: _Request, receiver: Receiver, operator: str, row: int) -> None:
        self.request = request
        self.receiver = receiver
        self.operator = operator
        self.row = row


class _Request:
    """One call to make, for everyone with a ticket; ``worker`` is the task that makes it now."""

    __slots__ = ("cache_key", "call", "engine", "key", "tickets", "worker")

    def __init__(self, call: ModelCall, engine: int, key: Key | None) -> None:
        self.call = call
        self.engine = engine
        self.key = key
        self.cache_key: bytes | None = None
        self.tickets: dict[Ticket, None] = {}
        self.worker: asyncio.Task[object] | None = None


class Dispatcher:
    """Makes calls on identical engines, in the order of their ranks where not all fit at once.

    Use it on one event loop, and close it there.
    """

    def __init__(
        self,
        backends: EngineBackend | Sequence[EngineBackend],
        *,
        retries: RetryPolicy | None = None,
        call_timeout_s: float | None = None,
        max_open_calls: int = MAX_OPEN_CALLS,
        cache: CacheLookup | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            backends: The engines; a retry goes to the next one.
            call_timeout_s: Seconds one attempt at a call may take; ``None`` waits for ever.
            max_open_calls: Calls under way per engine.
            cache: Asked before every deterministic call, and told every answer.
        """
        self.engines = list(backends) if isinstance(backends, Sequence) else [backends]
        if not self.engines:
            raise ConfigError("runtime: there is no engine; give at least one backend")
        if max_open_calls < 1:
            raise ConfigError(f"runtime: max_open_calls is {max_open_calls}; give at least 1")
        self._policy = retries or RetryPolicy()
        self._budget = RetryBudget(self._policy)
        self._call_timeout_s = call_timeout_s
        self._cache = cache
        self._lanes: list[Lane[_Request]] = [
            Lane(self._serve, max_open_calls) for _ in self.engines
        ]
        self._in_flight: dict[Key, _Request] = {}
        self._encoder = msgspec.json.Encoder()

    def submit(
        self, call: ModelCall, engine: int, receiver: Receiver, operator: str = "", row: int = 0
    ) -> Ticket:
        """Makes a call, or joins an equal one under way; returns at once.

        Two calls are equal when both are greedy or seeded, of the same tenant, and agree in every
        field. The order of keys in a structured-output constraint counts: it shapes the output.
        """
        key: Key | None = None
        if call.call.sampling.is_deterministic:
            key = (call.cache_salt, self._encoder.encode(call.call))
            request = self._in_flight.get(key)
            if request is not None:
                ticket = Ticket(request, receiver, operator, row)
                request.tickets[ticket] = None
                return ticket
        request = _Request(call, engine, key)
        ticket = Ticket(request, receiver, operator, row)
        request.tickets[ticket] = None
        if key is not None:
            self._in_flight[key] = request
        if key is not None and self._cache is not None:
            request.cache_key = self._cache.key(*key)
            self._cache.ask(request.cache_key, self._looked_up, request)
        else:
            self._enqueue(request)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives up a call; the engine's request goes on while anybody else waits for it."""
        request = ticket.request
        if request.tickets.pop(ticket, self) is self or request.tickets:
            return
        self._forget(request)
        if request.worker is not None:
            request.worker.cancel()

    async def close(self) -> None:
        """Cancels what is under way; the answers in hand are still written to the cache."""
        for lane in self._lanes:
            await lane.close()
        if self._cache is not None:
            await self._cache.close()

    def _enqueue(self, request: _Request) -> None:
        context = request.call.context
        rank = 0 if context is None or context.rank is None else context.rank
        self._lanes[request.engine].put(request, rank)

    def _looked_up(self, request: _Request, answer: ModelAnswer | None) -> None:
        if not request.tickets:
            return
        if answer is not None and len(answer.texts) == request.call.call.sampling.n:
            self._deliver(request, answer, "prompt_cache", "prompt_cache")
        else:
            self._enqueue(request)

    async def _serve(self, request: _Request) -> None:
        """Makes a call, unless everybody who wanted it has gone."""
        if not request.tickets:
            return
        request.worker = asyncio.current_task()
        try:
            outcome = await self._attempt(request)
        finally:
            request.worker = None
        if not request.tickets:
            return
        if self._cache is not None and request.cache_key is not None:
            num_outputs = request.call.call.sampling.n
            if isinstance(outcome, ModelAnswer) and len(outcome.texts) == num_outputs:
                self._cache.tell(request.cache_key, request.call.cache_salt, outcome)
        self._deliver(request, outcome, "engine", "shared")

    def _deliver(
        self,
        request: _Request,
        outcome: ModelAnswer | EngineError,
        first: Origin,
        others: Origin,
    ) -> None:
        self._forget(request)
        origin = first
        for ticket in list(request.tickets):
            if ticket in request.tickets:  # a receiver may cancel others
                del request.tickets[ticket]
                ticket.receiver.finished(ticket, outcome, origin)
                origin = others

    def _forget(self, request: _Request) -> None:
        if request.key is not None and self._in_flight.get(request.key) is request:
            del self._in_flight[request.key]

    async def _attempt(self, request: _Request) -> ModelAnswer | EngineError:
        """Makes a call until it succeeds, fails for good or has used up its retries."""
        engine = request.engine
        call = request.call
        self._budget.earn()
        for ticket in request.tickets:
            ticket.receiver.started(ticket, engine)
            break
        for attempt in itertools.count(1):
            error = EngineUnavailable(f"the call took more than {self._call_timeout_s} s")
            try:
                if self._call_timeout_s is None:
                    return await self.engines[engine].call(call)
                async with asyncio.timeout(self._call_timeout_s):
                    return await self.engines[engine].call(call)
            except EngineUnavailable as unavailable:
                error = unavailable
            except TimeoutError:
                pass
            except EngineError as final:
                return final
            except Exception as unexpected:
                logger.exception("engine %d failed in an unexpected way", engine)
                return EngineError(f"{type(unexpected).__name__}: {unexpected}")
            if attempt >= self._policy.max_attempts:
                return EngineError(f"{error}; gave up after {attempt} attempt(s)")
            if not self._budget.spend():
                return EngineError(f"{error}; not made again, the retry budget is used up")
            await asyncio.sleep(self._policy.delay_s(attempt))
            if len(self.engines) > 1:
                # The next engine has another plan: there the call is ordinary traffic.
                engine = (engine + 1) % len(self.engines)
                has_plan = engine == request.engine
                call = request.call if has_plan else _without_context(request.call)
        raise AssertionError("unreachable: the attempts are counted for ever")


def _without_context(call: ModelCall) -> ModelCall:
    return ModelCall(call.call, None, call.cache_salt)
