"""Calls move to another engine when theirs dies, is away or lags; nothing else changes."""

import asyncio

import pytest

from benchmarks.workflows import mapreduce
from helium import graphs, ops
from helium.optimizer.driver import optimize
from helium.planner import plan_workflow
from helium.runtime import (
    EngineGone,
    EngineUnavailable,
    ModelAnswer,
    RetryPolicy,
    RunStore,
    Runtime,
)
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.events import CallFinished, CallStarted
from helium.runtime.execution import Execution, RunOptions
from helium.runtime.function_threads import FunctionThreads
from helium.templates.tokenizer import WordTokenizer
from tests.unit.runtime.engines import Engine, echo
from tests.unit.runtime.virtual_time import run

RETRIES = RetryPolicy(max_attempts=4, base_delay_s=1, max_delay_s=4)


class Planned(Engine):
    """Refuses a context whose plan it was not told; ``fails`` is asked before every call."""

    def __init__(self, seconds=1.0, fails=lambda engine: None):
        super().__init__(seconds)
        self.fails = fails
        self.known = set()
        self.unknown = []

    async def register(self, plan):
        await super().register(plan)
        self.known.add(plan.digest())

    async def call(self, request):
        if request.context is not None and request.context.plan not in self.known:
            self.unknown.append(request.context)
        answer = await super().call(request)
        error = self.fails(self)
        if error is not None:
            raise error
        return answer


def compiled_mapreduce(num_rows=5):
    workload = mapreduce.build_mmlu(num_rows, scale=0.1)
    return optimize(workload.graph.compile(**workload.batch)).compiled


def execute(compiled, engines, *, max_open_calls=2, retries=RETRIES):
    events = []
    schedule = plan_workflow(compiled, WordTokenizer(), num_engines=len(engines))

    async def main():
        dispatcher = Dispatcher(engines, retries=retries, max_open_calls=max_open_calls)
        threads = FunctionThreads()
        options = RunOptions(on_event=events.append)
        try:
            execution = Execution(compiled, dispatcher, threads, "r", schedule, options)
            return await execution.execute()
        finally:
            await dispatcher.close()
            await threads.close()

    result, seconds = run(main())
    return result, seconds, events


def finishers(events):
    return {(e.operator, e.row): e.engine for e in events if isinstance(e, CallFinished)}


@pytest.mark.parametrize("num_served", [0, 1, 5])
def test_a_dead_engines_calls_are_made_elsewhere_under_their_plan(num_served):
    compiled = compiled_mapreduce()
    expected, _, _ = execute(compiled, [Planned(), Planned()])

    def dies(engine):
        return EngineGone("it died") if len(engine.requests) > num_served else None

    dying, living = Planned(fails=dies), Planned()
    # Not even one retry is needed: the call was not at fault.
    retries = RetryPolicy(max_attempts=1)
    result, _, events = execute(compiled, [dying, living], retries=retries)
    assert result.failures == [] and result.outputs == expected.outputs
    assert living.unknown == [], "the plan came before the calls"
    assert len(living.known) == 2, "its own and the other one's"
    # No call is lost or made twice, but those the engine died with.
    num_calls = len(finishers(events))
    assert num_calls <= len(dying.requests) + len(living.requests) <= num_calls + 2
    started = {}
    for event in events:
        if isinstance(event, CallStarted):
            started[event.operator, event.row] = event.engine
    assert finishers(events) == started, "the record names the engine that answered"
    assert set(list(finishers(events).values())[num_served:]) >= {1}


def test_an_engine_that_was_started_anew_is_told_its_plan_again():
    compiled = compiled_mapreduce()

    def restarts(engine):
        if len(engine.requests) in (3, 4):
            engine.known.clear()
            return EngineUnavailable("connection refused")
        return None

    engine = Planned(fails=restarts)
    result, _, _ = execute(compiled, [engine])
    assert result.failures == [] and engine.unknown == []
    assert len(engine.plans) >= 2


def test_an_engine_that_is_away_at_the_start_is_told_later():
    compiled = compiled_mapreduce()

    class Late(Planned):
        num_refused = 0

        async def register(self, plan):
            if self.num_refused < 1:
                self.num_refused += 1
                raise EngineUnavailable("connection refused")
            await super().register(plan)

    late, other = Late(), Planned()
    result, _, _ = execute(compiled, [late, other])
    assert result.failures == [] and late.requests and late.unknown == []
    with pytest.raises(EngineUnavailable):
        execute(compiled, [Late(), Late()])


def one_call_per_row(num_rows):
    question = ops.placeholder("question")
    answer = ops.llm([ops.Msg("user", ["Say ", question])], name="answer")
    return graphs.build({"answer": answer}).compile(question=[f"q{i}" for i in range(num_rows)])


def test_a_lagging_engines_waiting_calls_move_to_an_idle_one():
    compiled = one_call_per_row(40)
    expected, _, _ = execute(compiled, [Planned(), Planned()])
    lagging, quick = Planned(100.0), Planned(1.0)
    result, seconds, events = execute(compiled, [lagging, quick])
    assert result.outputs == expected.outputs and result.failures == []
    assert len(lagging.requests) == 2, "what it has is not taken from it"
    assert seconds == pytest.approx(100)
    assert len(quick.requests) == 38 and quick.unknown == []
    assert sorted(finishers(events).values()).count(1) == 38


def test_calls_with_a_short_wait_or_a_long_prefix_stay_where_they_were_placed():
    compiled = one_call_per_row(40)
    engines = [Planned(0.1), Planned(0.09)]
    execute(compiled, engines)
    assert [len(engine.requests) for engine in engines] == [20, 20]

    class Caching(Planned):
        """Almost all of a prompt is cached: without it a call would take a hundred times longer."""

        async def call(self, request):
            await super().call(request)
            return ModelAnswer(echo(request.call), 990, 980, 0)

    engines = [Caching(2.0), Caching(1.0)]
    execute(compiled, engines)
    assert [len(engine.requests) for engine in engines] == [20, 20]


def test_the_run_of_the_last_dead_engine_ends_with_the_reason_and_resumes(tmp_path):
    compiled_calls = 12
    question = ops.placeholder("question")
    graph = graphs.build({"a": ops.llm([ops.Msg("user", ["Say ", question])], name="a")})
    batch = {"question": [f"q{row}" for row in range(compiled_calls)]}

    def dies(engine):
        return EngineGone("the engine core died") if len(engine.requests) > 5 else None

    async def broken(engine):
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(engine, store=store) as runtime:
            handle = await runtime.submit(graph, batch, run="r")
            with pytest.raises(EngineGone, match="the engine core died"):
                await handle.result()
        info = store.info("r")
        store.close()
        return info

    async def resumed(engine):
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(engine, store=store) as runtime:
            result = await (await runtime.resume("r")).result()
        store.close()
        return result

    async def unbroken():
        async with Runtime(Engine()) as runtime:
            return await runtime.run(graph, batch)

    info = asyncio.run(broken(Planned(0.0, fails=dies)))
    assert info.status == "interrupted"
    engine = Engine()
    result = asyncio.run(resumed(engine))
    assert result.failures == []
    assert result.outputs == asyncio.run(unbroken()).outputs
    assert len(engine.requests) == compiled_calls - info.num_done
