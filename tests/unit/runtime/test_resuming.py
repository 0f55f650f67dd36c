"""Whatever was written of a run when it broke off, the rest makes the same whole."""

import asyncio
import random

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helium.optimizer.driver import optimize
from helium.plan.compiled_plan import bind
from helium.runtime import ModelAnswer, RunStore, Runtime, run_plan
from helium.runtime.events import CallFinished, FunctionFinished
from helium.runtime.run_store import RunSpec
from helium.templates.tokenizer import WordTokenizer
from tests.property.random_plans import FUNCTIONS, random_plan


class DrawingEngine:
    """Answers calls drawn at random differently every time, the others by what they are."""

    def __init__(self, seed):
        self.seed = seed
        self.num_calls = 0

    async def register(self, plan):
        pass

    async def call(self, request):
        self.num_calls += 1
        sampling = request.call.sampling
        drawn = "" if sampling.is_deterministic else f"{self.seed}.{self.num_calls}"
        key = random.Random(msgspec.json.encode(request.call) + drawn.encode()).random()
        for _ in range(self.num_calls * 5 % 4):
            await asyncio.sleep(0)
        texts = tuple(f"{key:.6f}/{choice}" for choice in range(sampling.n))
        return ModelAnswer(texts, 3, 1, 2)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.integers(0, 12), st.booleans(), st.floats(0, 1))
def test_a_run_resumed_after_any_prefix_of_its_events_keeps_every_value(
    tmp_path_factory, seed, size, is_optimized, share
):
    case = random_plan(seed, size)
    compiled = bind(case.plan, case.batch, functions=FUNCTIONS)
    if is_optimized:
        compiled = optimize(compiled).compiled
    events = []
    first = DrawingEngine("first")
    whole = asyncio.run(run_plan(compiled, first, functions=FUNCTIONS, on_event=events.append))
    kinds = (CallFinished, FunctionFinished)
    written = [event for event in events if isinstance(event, kinds)]
    written = written[: round(share * len(written))]
    num_answered = sum(isinstance(event, CallFinished) for event in written)

    store = RunStore(tmp_path_factory.mktemp("store") / "runs.db")
    store.create("r", RunSpec("w", "s", compiled))
    store.append("r", written)
    second = DrawingEngine("second")

    async def resume():
        async with Runtime(second, WordTokenizer(), store=store, functions=FUNCTIONS) as runtime:
            return await (await runtime.resume("r")).result()

    result = asyncio.run(resume())
    resumed_events = {(e.operator, e.row): e for _, e in store.events("r") if isinstance(e, kinds)}
    assert result.failures == [] == whole.failures
    for event in written:
        assert resumed_events[event.operator, event.row] == event  # not done again
    num_left = sum(isinstance(event, CallFinished) for event in events) - num_answered
    # Equal calls count as one at most: the rest may be fewer calls, never more.
    assert second.num_calls <= num_left
    if all(o.sampling.is_deterministic for o in compiled.plan.llm_operators) or share == 1:
        assert result.outputs == whole.outputs
    store.close()
