"""Between runs and engines: equal calls are made once, failed ones again.

All runs of a runtime share one dispatcher, so an equal deterministic call of another run is as good
as one's own. Nobody who waits for a shared call can spoil it for the others: it is cancelled when
the last of them is gone.

A call is made where the planner placed it, as long as that engine keeps up. What an engine that is
down or lags behind has not been sent yet moves to another one, and its plan is registered there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec

from helium.errors import ConfigError, EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import (
    EngineBackend,
    EngineGone,
    EngineUnavailable,
    ModelAnswer,
    ModelCall,
)
from helium.runtime.cache_lookup import CacheLookup
from helium.runtime.engine_state import EngineState
from helium.runtime.lane import Lane
from helium.runtime.retries import RetryBudget, RetryPolicy
from helium.runtime.tickets import Key, Origin, Receiver, Request, Ticket

logger = logging.getLogger(__name__)

MAX_OPEN_CALLS = 2048
"""Calls an engine is given at once: more than any batch holds, fewer than a process has sockets."""


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
            backends: The engines.
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
        self._states = [EngineState(backend, self._policy) for backend in self.engines]
        self._lanes: list[Lane[Request]] = [Lane(self._serve, max_open_calls) for _ in self.engines]
        self._in_flight: dict[Key, Request] = {}
        self._encoder = msgspec.json.Encoder()

    def submit(
        self,
        call: ModelCall,
        engine: int,
        receiver: Receiver,
        operator: str = "",
        row: int = 0,
        plan: EnginePlan | None = None,
    ) -> Ticket:
        """Makes a call, or joins an equal one under way; returns at once.

        Two calls are equal when both are greedy or seeded, of the same tenant, and agree in every
        field. The order of keys in a structured-output constraint counts: it shapes the output.

        Args:
            engine: Where the call was placed.
            plan: The one its context names; goes with the call where that is made elsewhere.
        """
        key: Key | None = None
        if call.call.sampling.is_deterministic:
            key = (call.cache_salt, self._encoder.encode(call.call))
            request = self._in_flight.get(key)
            if request is not None:
                ticket = Ticket(request, receiver, operator, row)
                request.tickets[ticket] = None
                return ticket
        request = Request(call, engine, key, plan)
        ticket = Ticket(request, receiver, operator, row)
        request.tickets[ticket] = None
        if key is not None:
            self._in_flight[key] = request
        if key is not None and self._cache is not None:
            request.question = self._cache.ask(*key, call.call.model, self._looked_up, request)
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

    def texts(self, ticket: Ticket) -> Mapping[int, str]:
        """Returns the outputs so far of a call, by index; empty where the engine does not tell."""
        request = ticket.request
        if request.worker is None:
            return {}
        texts = getattr(self._states[request.engine].backend, "texts", None)
        return texts(request.call) if texts is not None else {}

    async def register(self, plans: Sequence[EnginePlan]) -> None:
        """Registers every engine's plan with it; engines that are away are told when they are back.

        Raises:
            EngineError: An engine refused its plan, or none of them can be reached.
        """
        outcomes = await asyncio.gather(
            *(s.register(plan.digest(), plan) for s, plan in zip(self._states, plans, strict=True)),
            return_exceptions=True,
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        is_away = [isinstance(error, EngineUnavailable | EngineGone) for error in errors]
        if errors and (not all(is_away) or len(errors) == len(self.engines)):
            raise errors[is_away.index(False) if False in is_away else 0]

    def forget(self, plans: Sequence[EnginePlan]) -> None:
        """The run of these plans is over."""
        for plan in plans:
            digest = plan.digest()
            for state in self._states:
                state.forget_plan(digest)

    async def close(self) -> None:
        """Cancels what is under way; the answers in hand are still written to the cache."""
        for lane in self._lanes:
            await lane.close()
        if self._cache is not None:
            await self._cache.close()

    def _enqueue(self, request: Request) -> None:
        if len(self._lanes) > 1:
            if not self._states[request.engine].is_up():
                request.engine = self._least_loaded(request.engine, request.engine)
            self._put(request)
            if self._lanes[request.engine].num_waiting > 1:
                for engine, lane in enumerate(self._lanes):
                    if not lane.num_open and not lane.num_waiting:
                        self._fetch_work(engine)
        else:
            self._put(request)

    def _put(self, request: Request) -> None:
        context = request.call.context
        rank = 0 if context is None or context.rank is None else context.rank
        self._lanes[request.engine].put(request, rank)

    def _least_loaded(self, away: int, default: int) -> int:
        """Returns the engine that is up and has the fewest calls, but ``away``."""
        others = [e for e, state in enumerate(self._states) if e != away and state.is_up()]
        lanes = self._lanes
        return min(others, key=lambda e: lanes[e].num_waiting + lanes[e].num_open, default=default)

    def _not_gone(self, default: int) -> int:
        """Returns an engine that may come back, for want of one that is up."""
        states = enumerate(self._states)
        return next((engine for engine, state in states if not state.is_gone), default)

    def _evacuate(self, engine: int) -> None:
        """Gives what an engine that is down has not been sent yet to those that are up."""
        if self._least_loaded(engine, engine) != engine:
            lane = self._lanes[engine]
            for request in lane.take_last(lane.num_waiting):
                request.engine = self._least_loaded(engine, engine)
                self._put(request)

    def _fetch_work(self, idle: int) -> None:
        """Takes calls from the engine that is furthest behind, if they end earlier that way.

        A call that moves loses the prefix it would have found; one with a short time to wait stays.
        """
        lane = self._lanes[idle]
        if lane.num_waiting or lane.num_free < 1 or not self._states[idle].is_up():
            return
        others = [engine for engine in range(len(self._lanes)) if engine != idle]
        behind = max(others, key=lambda e: self._states[e].wait_s(self._lanes[e].num_waiting))
        state, waiting = self._states[behind], self._lanes[behind].num_waiting
        # Half of them at most: the two engines are even then.
        most, count = min(lane.num_free, (waiting + 1) // 2), 0
        while count < most and state.wait_s(waiting - count) > state.move_s():
            count += 1
        for request in self._lanes[behind].take_last(count) if count else ():
            request.engine = idle
            self._put(request)

    def _looked_up(self, request: Request, answer: ModelAnswer | None) -> None:
        if not request.tickets:
            return
        if answer is not None and len(answer.texts) == request.call.call.sampling.n:
            self._deliver(request, answer, "prompt_cache", "prompt_cache")
        else:
            self._enqueue(request)

    async def _serve(self, request: Request) -> None:
        """Makes a call, unless everybody who wanted it has gone."""
        if not request.tickets:
            return
        request.worker = asyncio.current_task()
        try:
            outcome = await self._attempt(request)
        finally:
            request.worker = None
        if outcome is None:
            if request.tickets:
                self._put(request)
            return
        if not request.tickets:
            return
        if self._cache is not None and request.question is not None:
            num_outputs = request.call.call.sampling.n
            if isinstance(outcome, ModelAnswer) and len(outcome.texts) == num_outputs:
                self._cache.tell(request.question, outcome)
        engine = request.engine
        self._deliver(request, outcome, "engine", "shared")
        if len(self._lanes) > 1 and not self._lanes[engine].num_waiting:
            self._fetch_work(engine)

    def _deliver(
        self,
        request: Request,
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

    def _forget(self, request: Request) -> None:
        if request.key is not None and self._in_flight.get(request.key) is request:
            del self._in_flight[request.key]

    async def _attempt(self, request: Request) -> ModelAnswer | EngineError | None:
        """Makes a call until it succeeds, fails for good or has used up its retries.

        Returns:
            ``None`` if another engine is to go on with it, the request's ``engine`` by then.
        """
        if not request.num_attempts:
            self._budget.earn()
        while True:
            engine, state = request.engine, self._states[request.engine]
            if state.is_down:
                error = await self._wait_for_turn(request, state)
                if error is not None:
                    return error
                if request.engine != engine:
                    return None
            for ticket in request.tickets:
                ticket.receiver.started(ticket, engine)
                break
            request.num_attempts += 1
            is_down = False
            sent_s = asyncio.get_running_loop().time()
            try:
                return await self._send(request, state)
            except EngineGone as gone:
                state.failed(gone, sent_s)
                self._evacuate(engine)
                request.engine = self._least_loaded(engine, self._not_gone(engine))
                if request.engine == engine:
                    return gone
                request.num_attempts -= 1  # that was the engine's fault, not the call's
                return None
            except EngineUnavailable as unavailable:
                error = unavailable
                is_down = state.failed(unavailable, sent_s)
                request.num_attempts = max(request.num_attempts, state.num_tries)
            except TimeoutError:
                error = EngineUnavailable(f"the call took more than {self._call_timeout_s} s")
            except EngineError as final:
                return final
            except Exception as unexpected:
                logger.exception("engine %d failed in an unexpected way", engine)
                return EngineError(f"{type(unexpected).__name__}: {unexpected}")
            if is_down:
                self._evacuate(engine)
            num_attempts = request.num_attempts
            if num_attempts >= self._policy.max_attempts:
                return _gave_up(error, num_attempts)
            other = self._least_loaded(engine, engine)
            if not is_down or other == engine:
                # An engine that is down sees one call at a time, whatever is left of the budget.
                if not is_down and not self._budget.spend():
                    return EngineError(f"{error}; not made again, the retry budget is used up")
                await asyncio.sleep(self._policy.delay_s(num_attempts))
                other = self._least_loaded(engine, engine)
            if other != engine:
                request.engine = other
                return None

    async def _wait_for_turn(self, request: Request, state: EngineState) -> EngineError | None:
        """Waits until an engine that is down may be tried, or another one can go on with the call.

        Returns:
            An error if it was tried as often as a call is made, and never answered.
        """
        engine = request.engine
        while True:
            if not state.is_up():
                request.engine = self._least_loaded(engine, engine)
                if request.engine != engine:
                    return None
            if await state.turn():
                return None
            # What was tried in its place counts as its own attempt.
            request.num_attempts = max(request.num_attempts + 1, state.num_tries)
            if request.num_attempts >= self._policy.max_attempts:
                return _gave_up(state.error, request.num_attempts)

    async def _send(self, request: Request, state: EngineState) -> ModelAnswer:
        """Makes one attempt, where the engine knows the plan if that can be had."""
        call = request.call
        if request.plan is not None and call.context is not None:
            try:
                await state.register(call.context.plan, request.plan)
            except (EngineUnavailable, EngineGone):
                raise
            except EngineError as error:
                logger.warning("a plan is not registered: %s", error)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        state.sent(self._lanes[request.engine].num_open)
        if self._call_timeout_s is None:
            answer = await state.backend.call(call)
        else:
            async with asyncio.timeout(self._call_timeout_s):
                answer = await state.backend.call(call)
        state.answered(answer, loop.time() - started_s)
        return answer


def _gave_up(error: EngineError | None, num_attempts: int) -> EngineError:
    return EngineError(f"{error}; gave up after {num_attempts} attempt(s)")
