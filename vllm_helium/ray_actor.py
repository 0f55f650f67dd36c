"""What runs inside a Ray actor: one engine, asked in JSON.

Only bytes and text cross the line, so nothing of ours is ever pickled.
"""

from __future__ import annotations

import logging
import os
from typing import NoReturn

import msgspec

from helium.errors import EngineError, PlanError
from helium.protocol import decode_engine_plan
from helium.runtime.backend import (
    EngineBackend,
    EngineGone,
    EngineUnavailable,
    ModelAnswer,
    ModelCall,
)

logger = logging.getLogger(__name__)

_decode_call = msgspec.json.Decoder(ModelCall).decode


class Reply(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What comes back: of a call its answer, of a plan nothing, or why there is none.

    Attributes:
        error: Why the engine did not do it.
        is_unavailable: Whether it may do it later.
    """

    answer: ModelAnswer | None = None
    error: str | None = None
    is_unavailable: bool = False


async def serve_call(backend: EngineBackend, encoded: bytes) -> bytes:
    """Answers an encoded ``ModelCall`` by an encoded ``Reply``.

    Raises:
        EngineGone: The engine has died.
    """
    try:
        reply = Reply(answer=await backend.call(_decode_call(encoded)))
    except (EngineError, msgspec.MsgspecError) as error:
        reply = _refusal(error)
    return msgspec.json.encode(reply)


async def serve_register(backend: EngineBackend, plan_json: bytes) -> bytes:
    """Registers an encoded ``EnginePlan``; answers by an encoded ``Reply``.

    Raises:
        EngineGone: The engine has died.
    """
    try:
        await backend.register(decode_engine_plan(plan_json))
        reply = Reply()
    except (EngineError, PlanError) as error:
        reply = _refusal(error)
    return msgspec.json.encode(reply)


def _refusal(error: Exception) -> Reply:
    if isinstance(error, EngineGone):
        raise error
    return Reply(error=str(error), is_unavailable=isinstance(error, EngineUnavailable))


class EngineActor:
    """One ``LLM`` behind methods that Ray calls; many calls are under way at once."""

    def __init__(self, model: str, llm_args: bytes) -> None:
        """Starts the engine.

        Args:
            llm_args: Arguments of ``LLM`` as a JSON object.
        """
        from vllm import LLM

        from vllm_helium.llm_backend import LLMBackend

        self._backend = LLMBackend(LLM(model, **msgspec.json.decode(llm_args)))

    async def pid(self) -> int:
        """Returns the process that holds the engine; answered once the engine has started."""
        return os.getpid()

    async def call(self, encoded: bytes) -> bytes:
        """Answers an encoded ``ModelCall`` by an encoded ``Reply``; cancelling it aborts."""
        try:
            return await serve_call(self._backend, encoded)
        except EngineGone as gone:
            _die(gone)

    async def register(self, plan_json: bytes) -> bytes:
        """Registers an encoded ``EnginePlan``; answers by an encoded ``Reply``."""
        try:
            return await serve_register(self._backend, plan_json)
        except EngineGone as gone:
            _die(gone)


def _die(reason: EngineGone) -> NoReturn:
    """Ends the process: Ray tells every caller, and starts another where that is wanted."""
    logger.error("this actor ends: %s", reason)
    logging.shutdown()
    os._exit(1)
