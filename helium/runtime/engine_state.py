"""What a dispatcher knows of one engine: whether it answers, how fast, and which plans it has."""

from __future__ import annotations

import asyncio
import contextlib

from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import EngineBackend, EngineGone, EngineUnavailable, ModelAnswer
from helium.runtime.retries import RetryPolicy

_WEIGHT = 0.1
"""Of the newest call in the running means: they follow a change within some ten calls."""
_MOVE_S = 1.0
"""What moving a call costs besides: its plan is registered, and what reads its answer follows."""
_DOWN_AFTER = 2
"""Failures in a row that are an engine's; a single one may be that of one call."""
_TRY_S = 1.0
"""How long others wait for the one call that tries an engine anew: a dead one refuses at once."""


class EngineState:
    """One engine, as seen by the calls made on it; used on one event loop.

    Attributes:
        error: The last reason it gave for not serving a call.
    """

    def __init__(self, backend: EngineBackend, policy: RetryPolicy) -> None:
        self.backend = backend
        self.is_gone = False
        self.error: EngineError | None = None
        self._policy = policy
        self._num_failures = 0
        self._failed_at_s = -1.0
        self._down_until_s = 0.0
        self._tried_at_s: float | None = None
        self._news = asyncio.Event()
        self._plans: dict[str, asyncio.Future[None]] = {}
        self._since_s: float | None = None
        self._interval_s = 0.0
        self._service_s = 0.0
        self._num_cached = 0.0
        self._num_computed = 0.0

    def is_up(self) -> bool:
        """Whether a call should be sent here now."""
        now = asyncio.get_running_loop().time()
        return not self.is_gone and (self._num_failures < _DOWN_AFTER or now >= self._down_until_s)

    async def register(self, digest: str, plan: EnginePlan) -> None:
        """Registers a plan, once for all who ask, and again after the engine was away.

        Raises:
            EngineError: The engine cannot be reached, or refused the plan.
        """
        registered = self._plans.get(digest)
        if registered is not None:
            await asyncio.shield(registered)
            return
        registered = self._plans[digest] = asyncio.ensure_future(self.backend.register(plan))
        try:
            await asyncio.shield(registered)
        except EngineError:
            self._plans.pop(digest, None)
            raise

    def forget_plan(self, digest: str) -> None:
        """A run is over; its plan may be registered anew by the next one."""
        self._plans.pop(digest, None)

    @property
    def is_down(self) -> bool:
        """Whether the engine has failed and not answered since."""
        return self._num_failures >= _DOWN_AFTER

    @property
    def num_tries(self) -> int:
        """Attempts in a row that failed, as one call would count them."""
        return max(0, self._num_failures - _DOWN_AFTER + 1)

    async def turn(self) -> bool:
        """Waits for a call's turn at an engine that is down.

        After each pause one call tries the engine. The others wait for what becomes of it, so that
        neither a server in trouble nor the retry budget sees all of them.

        Returns:
            ``False`` if the engine was tried meanwhile, and failed.
        """
        loop = asyncio.get_running_loop()
        num_failures = self._num_failures
        while self.is_down and not self.is_gone:
            if self._num_failures > num_failures:
                return False
            now, due_s = loop.time(), self._down_until_s
            if self._tried_at_s is not None:
                due_s = self._tried_at_s + _TRY_S
            if now >= due_s:
                self._tried_at_s = self._tried_at_s or now
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._news.wait()
        return True

    def failed(self, error: EngineGone | EngineUnavailable, sent_s: float) -> bool:
        """Notes that the engine did not serve a call; returns whether it is down now.

        Args:
            sent_s: When the call was sent. Those sent before the last failure tell nothing new.
        """
        self._plans.clear()  # whoever comes back may have been started anew
        self.is_gone = self.is_gone or isinstance(error, EngineGone)
        self.error = error
        if not self.is_down or sent_s > self._failed_at_s:
            self._num_failures += 1
            self._failed_at_s = asyncio.get_running_loop().time()
            self._tried_at_s = None
            if self.is_down:
                pause_s = self._policy.delay_s(self.num_tries)
                self._down_until_s = max(self._down_until_s, self._failed_at_s + pause_s)
        self._wake()
        return not self.is_up()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def sent(self, num_open: int) -> None:
        """Notes that a call is sent.

        Args:
            num_open: Calls the engine has now, this one among them.
        """
        if num_open <= 1 or self._since_s is None:
            self._since_s = asyncio.get_running_loop().time()

    def answered(self, answer: ModelAnswer, service_s: float) -> None:
        """Notes a served call.

        Args:
            service_s: Seconds from sending it to its answer.
        """
        if self._num_failures:
            self._num_failures = 0
            self._tried_at_s = None
            self._wake()
        now = asyncio.get_running_loop().time()
        if self._since_s is not None:
            self._interval_s = _mean(self._interval_s, now - self._since_s)
        self._since_s = now
        self._service_s = _mean(self._service_s, service_s)
        num_prompt, num_cached = answer.num_prompt_tokens, answer.num_cached_tokens
        self._num_cached = _mean(self._num_cached, num_cached)
        num_computed = num_prompt - num_cached + answer.num_output_tokens
        self._num_computed = _mean(self._num_computed, num_computed)

    def wait_s(self, num_ahead: int) -> float:
        """Returns the expected seconds until the call behind ``num_ahead`` others is sent.

        An engine that has not answered for longer than usual is expected to go on like that.
        """
        interval_s = self._interval_s
        if self._since_s is not None:
            interval_s = max(interval_s, asyncio.get_running_loop().time() - self._since_s)
        return num_ahead * interval_s

    def move_s(self) -> float:
        """Returns what a call loses that moves away, in seconds: its wait must be longer.

        Its prefix above all: the cached tokens of an average call here, at the average time of a
        computed one. A decoded token takes longer than a prefilled one, so this errs on the side of
        staying.
        """
        if self._num_computed <= 0:
            return _MOVE_S
        return _MOVE_S + self._service_s * self._num_cached / self._num_computed


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _WEIGHT * (value - mean)
