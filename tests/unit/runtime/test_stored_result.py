"""What is written of a run is enough to tell its result, and whom it belongs to."""

import asyncio

import pytest

from helium import graphs, ops
from helium.plan.operators import Sampling
from helium.runtime import EngineUnavailable, RunError, RunStore, Runtime
from helium.runtime.stored_result import stored_result
from tests.unit.runtime.engines import Engine, echo


def workflow():
    topic = ops.placeholder("topic")
    draft = ops.llm([ops.Msg("user", ["draft ", topic])], name="draft")
    both = ops.llm(
        [ops.Msg("user", ["rate ", draft])], name="rate", sampling=Sampling(n=2, temperature=1.0)
    )
    return graphs.build({"rating": both, "text": ops.format("{}: {}", topic, draft)})


def answer(call):
    if "bad" in call.messages[-1][1]:
        from helium.errors import EngineError

        raise EngineError("a bad topic")
    return echo(call)


BATCH = {"topic": ["a", "bad", "c"]}


def test_the_stored_result_is_the_results_own(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(Engine(answer=answer), store=store) as runtime:
            run = await runtime.submit(workflow(), BATCH, run="r")
            return await run.result(), stored_result(store, "r")

    result, stored = asyncio.run(main())
    assert stored.outputs == result.outputs and stored.outputs["text"][1] is None
    assert stored.failures == result.failures and len(stored.failures) == 1
    assert stored.counts == result.counts
    assert stored.rows()[2].keys() == {"rating", "text"}


def test_a_run_half_done_tells_what_is_there(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        engine = Engine(answer=lambda call: (_ for _ in ()).throw(EngineUnavailable("away")))
        async with Runtime(engine, store=store) as runtime:
            await runtime.submit(workflow(), BATCH, run="r")
            await asyncio.sleep(0)
        return store.info("r").status, stored_result(store, "r")

    status, stored = asyncio.run(main())
    assert status == "interrupted"
    assert stored.outputs == {"rating": [None] * 3, "text": [None] * 3}


def test_an_id_goes_on_for_the_same_request_alone(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        engine = Engine()
        async with Runtime(engine, store=store) as runtime:
            first = await runtime.submit(workflow(), {"topic": "x"}, run="r", resume=True)
            joined = await runtime.submit(workflow(), {"topic": "x"}, run="r", resume=True)
            assert joined is first
            for other in ({"topic": "y"}, {"topic": ["x"]}):
                with pytest.raises(RunError, match="another workflow, batch or cache_salt"):
                    await runtime.submit(workflow(), other, run="r", resume=True)
            result = await first.result()
            again = await runtime.submit(workflow(), {"topic": "x"}, run="r", resume=True)
            assert again.num_earlier_events == 4  # start, two calls, end
            assert (await again.result()).outputs == result.outputs
            with pytest.raises(RunError, match="exists already"):
                await runtime.submit(workflow(), {"topic": "x"}, run="r")
        return len(engine.requests)

    assert asyncio.run(main()) == 2
