"""Time passes only when nobody has anything left to do."""

from __future__ import annotations

import asyncio
import time

import pytest

from helium.errors import EngineError
from vllm_helium.request import read_context
from vllm_helium.simulator.virtual_time import VirtualClock, run


class _Machine:
    """Takes orders; all that have come when it starts a batch are done a second later."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._orders: list[asyncio.Future[float]] = []
        self._batch: list[asyncio.Future[float]] = []
        self._end_s: float | None = None
        self.batch_sizes: list[int] = []

    async def order(self) -> float:
        self._orders.append(asyncio.get_running_loop().create_future())
        return await self._orders[-1]

    def prepare(self) -> None:
        if self._end_s is None and self._orders:
            self._batch, self._orders = self._orders, []
            self.batch_sizes.append(len(self._batch))
            self._end_s = self._clock.now() + 1.0

    def next_event_s(self) -> float | None:
        return self._end_s

    def happen(self) -> None:
        for future in self._batch:
            future.set_result(self._clock.now())
        self._end_s = None


def _run(program):
    clock = VirtualClock()
    machine = _Machine(clock)
    return run(lambda: program(machine), clock, machine), clock, machine


def test_what_becomes_ready_together_is_submitted_together():
    async def client(machine, hops):
        for _ in range(hops):  # however many turns of the loop it takes
            await asyncio.sleep(0)
        await machine.order()
        return await machine.order()

    async def program(machine):
        return await asyncio.gather(*(client(machine, hops) for hops in range(5)))

    ends, clock, machine = _run(program)

    assert machine.batch_sizes == [5, 5]
    assert ends == [2.0] * 5 and clock.now() == 2.0


def test_timers_and_events_come_in_order_of_time():
    async def program(machine):
        seen = []

        async def sleeper(delay_s):
            await asyncio.sleep(delay_s)
            seen.append(delay_s)

        async def orderer():
            seen.append(("order", await machine.order()))

        await asyncio.gather(sleeper(1.5), sleeper(0.25), orderer())
        return seen

    seen, clock, _ = _run(program)

    assert seen == [0.25, ("order", 1.0), 1.5]
    assert clock.now() == pytest.approx(1.5)


def test_a_function_sent_to_a_thread_takes_no_time_and_its_error_comes_back():
    async def program(machine):
        order = asyncio.ensure_future(machine.order())
        assert await asyncio.to_thread(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert not order.done()
        return await order

    assert _run(program)[0] == 1.0


def test_a_timeout_counts_virtual_time():
    async def program(machine):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await machine.order()
        return asyncio.get_running_loop().time()

    started = time.perf_counter()
    assert _run(program)[0] == pytest.approx(0.5)
    assert time.perf_counter() - started < 30


def test_waiting_for_what_never_happens_is_an_error_that_says_so():
    async def program(machine):
        await asyncio.get_running_loop().create_future()

    with pytest.raises(EngineError, match="no engine works and no timer is set"):
        _run(program)


def test_engine_modules_read_the_clock_and_get_their_time_back():
    from vllm_helium.scheduler import scheduler as module

    clock = VirtualClock()
    clock.advance_to(12.5)
    with clock.as_time():
        assert module.time.time() == 12.5
    assert module.time is time
    assert read_context(None) is None  # modules without ``time`` are left alone
