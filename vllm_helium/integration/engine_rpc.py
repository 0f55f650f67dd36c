"""Hook ``engine-rpc``: calls from a front end to ``HeliumScheduler.helium_rpc`` in every engine.

A call runs on the engine's thread between two steps, so the scheduler's state needs no lock.
Arguments and results are plain msgpack values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from helium.errors import EngineError

_T = TypeVar("_T")

_LOOK_S = 1.0
"""Pause between two looks whether the engine that is waited for is still alive."""


async def call_engines_async(engine_client: Any, method: str, *args: Any) -> list[Any]:
    """Calls every engine behind an ``AsyncLLM``; one result per engine.

    Raises:
        EngineError: An engine died before it answered.
    """
    core = engine_client.engine_core
    call_all = getattr(core, "call_utility_all_async", None)
    if call_all is not None:
        results: list[Any] = await _unless_dead(
            engine_client, call_all("helium_rpc", method, *args)
        )
        return results
    answer = core.call_utility_async("helium_rpc", method, *args)
    return [await _unless_dead(engine_client, answer)]


def num_engines(engine_client: Any) -> int:
    """Returns how many engines an ``AsyncLLM`` sends requests to: its data-parallel ranks."""
    core = getattr(engine_client, "engine_core", None)
    return len(getattr(core, "core_engines", ())) or 1


async def call_engine_async(engine_client: Any, rank: int, method: str, *args: Any) -> Any:
    """Calls one of several engines behind an ``AsyncLLM``.

    Args:
        rank: Below ``num_engines``.

    Raises:
        EngineError: The engine died before it answered.
    """
    core = engine_client.engine_core
    engine = core.core_engines[rank]
    answer = core._call_utility_async("helium_rpc", method, *args, engine=engine)
    return await _unless_dead(engine_client, answer)


async def _unless_dead(engine_client: Any, answer: Awaitable[_T]) -> _T:
    """Waits for an answer that never comes if the engine dies: upstream keeps it waiting."""
    waiting = asyncio.ensure_future(answer)
    try:
        while not (await asyncio.wait((waiting,), timeout=_LOOK_S))[0]:
            if engine_client.errored:
                raise EngineError("the engine died before it answered")
    except BaseException:
        waiting.cancel()
        raise
    return waiting.result()


def call_engines(llm: Any, method: str, *args: Any) -> list[Any]:
    """Calls the engine behind an ``LLM``, in process or not.

    Raises:
        EngineError: The engine runs without Helium.
    """
    if llm.llm_engine.vllm_config.helium_config is None:
        raise EngineError("this engine runs without Helium; build it with LLM(..., helium=True)")
    core = llm.llm_engine.engine_core
    call = getattr(core, "call_utility", None)
    if call is not None:
        return [call("helium_rpc", method, *args)]
    return [core.engine_core.helium_rpc(method, *args)]


def has_own_work(llm: Any) -> bool:
    """Whether an engine in this process has requests of its own that only our steps can serve.

    An engine in another process steps by itself.
    """
    inner = getattr(llm.llm_engine.engine_core, "engine_core", None)
    return inner is not None and bool(inner.scheduler.has_unfinished_requests())
