"""A run that waits for its engine leaves the event loop asleep."""

from __future__ import annotations

import asyncio
import selectors
from pathlib import Path

from helium import graphs, ops
from helium.protocol import EnginePlan
from helium.runtime import ModelAnswer, ModelCall, RunStore, Runtime

_WAIT_S = 2.5


class _CountingSelector(selectors.DefaultSelector):
    """Counts how often an event loop woke up."""

    num_selects = 0

    def select(self, timeout: float | None = None):  # type: ignore[no-untyped-def]
        self.num_selects += 1
        return super().select(timeout)


class _SlowEngine:
    def __init__(self, selector: _CountingSelector) -> None:
        self._selector = selector
        self.num_wakeups: list[int] = []

    async def register(self, plan: EnginePlan) -> None:
        """Takes any plan."""

    async def call(self, request: ModelCall) -> ModelAnswer:
        before = self._selector.num_selects
        await asyncio.sleep(_WAIT_S)
        self.num_wakeups.append(self._selector.num_selects - before)
        return ModelAnswer(("done",))


def test_a_waiting_run_wakes_the_loop_a_few_times_a_second(tmp_path: Path) -> None:
    selector = _CountingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    engine = _SlowEngine(selector)
    question = ops.placeholder("question")
    graph = graphs.build({"answer": ops.llm([ops.Msg("user", question)])})

    async def run() -> list[str]:
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(engine, store=store) as runtime:
            result = await runtime.run(graph, {"question": [f"q{i}" for i in range(8)]})
        store.close()
        return result.outputs["answer"]

    try:
        assert loop.run_until_complete(run()) == ["done"] * 8
    finally:
        loop.close()
    # Eight calls start and end, the checkpoint writes, cancel requests are polled once a second.
    assert len(engine.num_wakeups) == 8
    assert max(engine.num_wakeups) <= 40, engine.num_wakeups
