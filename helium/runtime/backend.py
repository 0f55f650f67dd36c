"""What the runtime asks of an engine: in process, over HTTP, an actor or a simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from helium.errors import EngineError
from helium.plan.calls import Call
from helium.protocol import EnginePlan, WorkflowContext


class EngineUnavailable(EngineError):
    """An engine cannot serve now, but may later, or another one may: the call is made again."""


class EngineGone(EngineError):
    """An engine has died and does not come back by itself: other engines make its calls.

    Where there is none left the run ends with this, and can be resumed on a new engine.
    """


class ModelCall(msgspec.Struct, frozen=True, gc=False):
    """A call and who makes it.

    Attributes:
        context: Where the call belongs in a run; ``None`` makes it ordinary traffic.
        cache_salt: Tenant of the call: no cache is shared with a call of another salt.
    """

    call: Call
    context: WorkflowContext | None = None
    cache_salt: str | None = None


class ModelAnswer(msgspec.Struct, frozen=True, gc=False):
    """What came back: the ``n`` texts and the call's token counts.

    Attributes:
        queue_ms: Time before the engine's first step for the call, 0 where it does not say.
        misses: Why prompt tokens were not in its cache, reason -> tokens; empty where it does not
            say.
    """

    texts: tuple[str, ...]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    queue_ms: float = 0.0
    misses: dict[str, int] = {}


class EngineBackend(Protocol):
    """One engine, or several behind one address."""

    async def register(self, plan: EnginePlan) -> None:
        """Tells the engine about a run before its calls arrive; idempotent.

        An engine that knows no plans (stock vLLM) is no error: calls then run as ordinary traffic.

        Raises:
            EngineError: The engine cannot be reached.
        """

    async def call(self, request: ModelCall) -> ModelAnswer:
        """Answers one call; many may be under way at once. Cancelling it aborts the request.

        Raises:
            EngineUnavailable: The same call may succeed later, or elsewhere.
            EngineGone: The engine has died.
            EngineError: The call failed for good; the message says why.
        """


class GrowingBackend(EngineBackend, Protocol):
    """An engine that can say what a call's outputs are so far."""

    def texts(self, request: ModelCall) -> Mapping[int, str]:
        """Returns the outputs so far of a call under way, by index; empty where it has none.

        Costs a call nothing that nobody asks about. Outputs that are told only grow, until the call
        is made again.

        Args:
            request: The very object that ``call`` was given.
        """


def reported(report: object) -> tuple[float, dict[str, int]]:
    """Returns ``queue_ms`` and ``misses`` of an engine's report, as far as it has them.

    Args:
        report: ``RequestOutput.helium``, or ``helium`` of an HTTP answer; of an engine that may be
            of another version, or another's.
    """
    if not isinstance(report, dict):
        return 0.0, {}
    queue_ms, misses = report.get("queue_ms"), report.get("misses")
    return (
        float(queue_ms) if isinstance(queue_ms, (int, float)) else 0.0,
        {str(reason): n for reason, n in misses.items() if isinstance(n, int)}
        if isinstance(misses, dict)
        else {},
    )
