"""What a dispatcher knows of one engine: whether it answers, how fast, and which plans it has."""

from __future__ import annotations

import asyncio

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


class EngineState:
    """One engine, as seen by the calls made on it; used on one event loop."""

    def __init__(self, backend: EngineBackend, policy: RetryPolicy) -> None:
        self.backend = backend
        self.is_gone = False
        self._policy = policy
        self._num_failures = 0
        self._down_until_s = 0.0
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

    def failed(self, error: EngineGone | EngineUnavailable) -> bool:
        """Notes that the engine did not serve a call; returns whether it is down now."""
        self._plans.clear()  # whoever comes back may have been started anew
        self.is_gone = self.is_gone or isinstance(error, EngineGone)
        self._num_failures += 1
        if self._num_failures >= _DOWN_AFTER:
            now = asyncio.get_running_loop().time()
            pause_s = self._policy.delay_s(self._num_failures - _DOWN_AFTER + 1)
            self._down_until_s = max(self._down_until_s, now + pause_s)
        return not self.is_up()

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
        self._num_failures = 0
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
