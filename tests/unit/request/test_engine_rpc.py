"""Calls to engines end when the engine does, though upstream leaves them waiting."""

import asyncio
from types import SimpleNamespace

import pytest

from helium.errors import EngineError
from vllm_helium.integration import engine_rpc


def client(call):
    core = SimpleNamespace(call_utility_all_async=call)
    return SimpleNamespace(engine_core=core, errored=False)


def test_a_call_waits_for_a_slow_engine_and_not_for_a_dead_one(monkeypatch):
    monkeypatch.setattr(engine_rpc, "_LOOK_S", 0.01)
    cancelled = []

    async def slow(*args):
        await asyncio.sleep(0.1)
        return [args]

    async def never(*args):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(args)
            raise

    async def main():
        answer = await engine_rpc.call_engines_async(client(slow), "status")
        assert answer == [("helium_rpc", "status")]
        dying = client(never)
        call = asyncio.ensure_future(engine_rpc.call_engines_async(dying, "status"))
        await asyncio.sleep(0.05)
        assert not call.done()
        dying.errored = True
        with pytest.raises(EngineError, match="died"):
            await call
        again = asyncio.ensure_future(engine_rpc.call_engines_async(client(never), "status"))
        await asyncio.sleep(0.05)
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        await asyncio.sleep(0)
        assert len(cancelled) == 2, "nothing goes on behind it"

    asyncio.run(main())
