"""Calls that somebody waits for: a ticket for each who does, a request for each call to make."""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

from helium.errors import EngineError
from helium.protocol import EnginePlan
from helium.runtime.backend import ModelAnswer, ModelCall
from helium.runtime.cache_lookup import Question

Origin = Literal["engine", "shared", "prompt_cache"]
"""Where an answer came from: a call of one's own, an equal call of somebody, or the cache."""

Key = tuple[str | None, bytes]
"""What equal calls have in common: the tenant and every field of the call."""


class Receiver(Protocol):
    """Who makes calls. All of it is called on the event loop and must not raise."""

    def started(self, ticket: Ticket, engine: int) -> None:
        """The call goes to an engine, perhaps after another one did not serve it.

        Not told of calls that join one under way.
        """

    def finished(self, ticket: Ticket, outcome: ModelAnswer | EngineError, origin: Origin) -> None:
        """The call has its outcome; told once, and never after ``cancel``."""


class Ticket:
    """One call somebody waits for.

    Attributes:
        operator: Operator the call is made for.
        row: Row the call is made for.
        engine: Engine that has the call, or had it when it ended.
    """

    __slots__ = ("operator", "receiver", "request", "row")

    def __init__(self, request: Request, receiver: Receiver, operator: str, row: int) -> None:
        self.request = request
        self.receiver = receiver
        self.operator = operator
        self.row = row

    @property
    def engine(self) -> int:
        return self.request.engine


class Request:
    """One call to make, for everyone with a ticket; ``worker`` is the task that makes it now."""

    __slots__ = (
        "call",
        "engine",
        "key",
        "num_attempts",
        "plan",
        "question",
        "tickets",
        "worker",
    )

    def __init__(
        self, call: ModelCall, engine: int, key: Key | None, plan: EnginePlan | None
    ) -> None:
        self.call = call
        self.engine = engine
        self.key = key
        self.question: Question | None = None
        self.plan = plan
        self.num_attempts = 0
        self.tickets: dict[Ticket, None] = {}
        self.worker: asyncio.Task[object] | None = None
