"""An engine core in this process dies in the middle of a run: another engine goes on with it."""

import asyncio
import contextlib

import pytest
from transformers import AutoTokenizer

from benchmarks.workflows import mapreduce
from helium.runtime import EngineGone, RunStore, Runtime, RuntimeOptions
from helium.templates.tokenizer import TransformersTokenizer
from tests.in_process_engine import in_process_llm
from vllm_helium.llm_backend import LLMBackend

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WORKLOAD = mapreduce.build_mmlu(6, scale=0.2, max_tokens=12)
NUM_CALLS = 6 * 8
"""Seven of the fourteen experts are distinct."""


def break_after(llm, num_steps):
    """Makes the engine's core fail in its step after so many."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    schedule, steps = scheduler.schedule, iter(range(num_steps))

    def failing(*arguments, **named):
        if next(steps, None) is None:
            raise RuntimeError("the device is gone")
        return schedule(*arguments, **named)

    scheduler.schedule = failing


def sitting(llm, model, path, run, *, resume=False):
    """Works on a run until it is over or the engine is."""
    tokenizer = TransformersTokenizer(AutoTokenizer.from_pretrained(model))

    async def main(backend, store):
        options = RuntimeOptions(max_open_calls=4)
        async with Runtime(backend, tokenizer, store=store, options=options) as runtime:
            if resume:
                started = await runtime.resume(run)
            else:
                started = await runtime.submit(WORKLOAD.graph, WORKLOAD.batch, run=run)
            return await started.result()

    with LLMBackend(llm) as backend, contextlib.closing(RunStore(path)) as store:
        return asyncio.run(main(backend, store))


def num_done(path, run):
    with contextlib.closing(RunStore(path)) as store:
        return store.info(run).num_done


def test_a_run_whose_engine_core_died_goes_on_with_another_one(tiny_model, tmp_path):
    path = tmp_path / "runs.db"
    with in_process_llm(tiny_model, helium=True) as first:
        break_after(first, num_steps=60)
        with pytest.raises(EngineGone, match="the device is gone"):
            sitting(first, tiny_model, path, "broken")
    num_kept = num_done(path, "broken")
    assert 0 < num_kept < NUM_CALLS
    with in_process_llm(tiny_model, helium=True) as second:
        resumed = sitting(second, tiny_model, path, "broken", resume=True)
        unbroken = sitting(second, tiny_model, path, "unbroken")
    assert resumed.failures == unbroken.failures == []
    assert resumed.outputs == unbroken.outputs
    # What the first engine answered is not asked again.
    assert resumed.total.num_calls == NUM_CALLS - num_kept
    assert unbroken.total.num_calls == NUM_CALLS
