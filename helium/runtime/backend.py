"""What the runtime asks of an engine: in process, over HTTP, an actor or a simulator."""

from __future__ import annotations

from typing import Protocol

import msgspec

from helium.errors import EngineError
from helium.plan.calls import Call
from helium.protocol import EnginePlan, WorkflowContext


class EngineUnavailable(EngineError):
    """An engine cannot serve now, but may later, or another one may: the call is made again."""


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
    """What came back: the ``n`` texts and the call's token counts."""

    texts: tuple[str, ...]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0


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
            EngineError: The call failed for good; the message says why.
        """
