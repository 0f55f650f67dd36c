"""``AsyncLLM.run_workflow`` on a real engine in a process of its own, which may also die."""

import asyncio
import contextlib

import psutil
import pytest

from benchmarks.workflows import mapreduce
from helium import graphs, ops
from helium.plan.interpret import interpret
from helium.plan.operators import Sampling
from helium.runtime import EngineGone, RunStore
from tests.integration.conftest import FAST_ENGINE_ARGUMENTS, FAST_ENGINE_ENVIRONMENT
from vllm_helium.integration.engine_rpc import call_engines_async

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKENS = 60
ROWS = 96
"""Of the run that is broken off: many more than are done before that is noticed."""


@contextlib.contextmanager
def async_llm(model):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = FAST_ENGINE_ARGUMENTS | {"max_num_seqs": 8}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), helium=True, **arguments))
    try:
        yield engine
    finally:
        engine.shutdown()


def kill_engine(front_end):
    """Kills the engine of a front end's process with SIGKILL; its workers end by themselves."""
    for child in front_end.children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()):
            child.kill()
            return
    raise AssertionError(f"process {front_end.pid} has no EngineCore")


def chain(num_rows):
    question = ops.placeholder("question")
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)
    first = ops.llm([ops.Msg("user", ["One: ", question])], name="first", sampling=sampling)
    second = ops.llm([ops.Msg("user", ["Two: ", first])], name="second", sampling=sampling)
    graph = graphs.build({"first": first, "second": second})
    return graph, {"question": [f"question {row}" for row in range(num_rows)]}


async def naive(engine, workload):
    """Makes every call by itself, one after the other, as ordinary traffic."""
    from vllm_helium.async_backend import AsyncLLMBackend
    from vllm_helium.engine_calls import render, sampling_params

    tokenizer = AsyncLLMBackend(engine)._tokenizer
    loop = asyncio.get_running_loop()
    numbers = iter(range(1 << 20))

    async def one(call):
        prompt = {"prompt_token_ids": render(call, tokenizer)}
        params = sampling_params(call.sampling)
        async for output in engine.generate(prompt, params, f"naive-{next(numbers)}"):
            last = output
        return tuple(choice.text for choice in last.outputs)

    def model(call, operator, row):
        return asyncio.run_coroutine_threadsafe(one(call), loop).result()

    compiled = workload.graph.compile(**workload.batch)
    return await asyncio.to_thread(interpret, compiled, model)


async def load(engine):
    (status,) = await call_engines_async(engine, "status")
    return status["num_running"] + status["num_waiting"]


def test_workflows_run_beside_each_other_and_a_cancelled_one_leaves_nothing(
    tiny_model, monkeypatch
):
    for name, value in FAST_ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    workload = mapreduce.build_mmlu(2, scale=0.1, max_tokens=4)

    async def main():
        with async_llm(tiny_model) as engine:
            expected = await naive(engine, workload)
            both = [
                engine.run_workflow(workload.graph, workload.batch, use_tqdm=False)
                for _ in range(2)
            ]
            for result in await asyncio.gather(*both):
                assert result.outputs == expected and result.failures == []

            graph, batch = chain(16)
            run = asyncio.ensure_future(engine.run_workflow(graph, batch, use_tqdm=False))
            while not await load(engine):
                await asyncio.sleep(0.01)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            while await load(engine):
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_run_over_an_engine_that_dies_says_so_and_goes_on_with_another(
    tiny_model, tmp_path, monkeypatch
):
    for name, value in FAST_ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    graph, batch = chain(ROWS)
    store = RunStore(tmp_path / "runs.db")
    arguments = {"use_tqdm": False, "store": store, "run": "r1"}

    async def broken():
        with async_llm(tiny_model) as engine:
            unbroken = await engine.run_workflow(graph, batch, use_tqdm=False)
            run = asyncio.ensure_future(engine.run_workflow(graph, batch, **arguments))
            while not (store.find("r1") and store.info("r1").num_done):
                await asyncio.sleep(0.01)
                assert not run.done()
            kill_engine(psutil.Process())
            with pytest.raises(EngineGone, match="EngineDead"):
                await run
            return unbroken.outputs

    async def resumed():
        with async_llm(tiny_model) as engine:
            return await engine.run_workflow(graph, batch, **arguments)

    try:
        unbroken = asyncio.run(broken())
        info = store.info("r1")
        assert info.status == "interrupted" and 0 < info.num_done < 2 * ROWS
        whole = asyncio.run(resumed())
        assert whole.failures == [] and whole.outputs == unbroken
        assert whole.total.num_calls == 2 * ROWS - info.num_done, "only what was left was done"
    finally:
        store.close()
