"""Runs side by side on one server, in virtual time."""

from helium import graphs, ops
from helium.plan.operators import Sampling
from tests.unit.runtime.engines import Engine
from tests.unit.runtime.virtual_time import run
from vllm_helium.serving.workflow_service import WorkflowService


def plan(**sampling):
    prompt = [ops.Msg("user", ["say ", ops.placeholder("word")])]
    return graphs.build({"said": ops.llm(prompt, name="say", sampling=Sampling(**sampling))}).plan


async def finished(service, plans, words):
    """Runs one workflow per plan at once; returns their results in order."""
    started = [
        await service.submit("w", one, {"word": word})
        for one, word in zip(plans, words, strict=True)
    ]
    for name in started:
        await service.wait(name)
    return [await service.result(name) for name in started]


def in_virtual_time(folder, engine, plans, words):
    async def main():
        service = WorkflowService(engine, None, folder)
        try:
            return await finished(service, plans, words)
        finally:
            await service.close()

    return run(main())


def test_four_runs_of_one_call_of_a_second_take_a_second(tmp_path):
    engine = Engine(1.0)
    results, seconds = in_virtual_time(tmp_path, engine, [plan()] * 4, "abcd")
    assert all(result.failures == [] for result in results)
    assert engine.max_open == 4 and 1.0 <= seconds < 1.5


def test_equal_calls_of_several_runs_are_made_once_and_unequal_ones_never_mix(tmp_path):
    engine = Engine(1.0)
    variants = [{}, {"stop": ("x",)}, {"seed": 1}, {"max_tokens": 3}, {"top_k": 2}]
    sampled = [{"n": 2, "temperature": 1.0, "seed": seed} for seed in (1, 2)]
    plans = [plan(**sampling) for sampling in variants + sampled]
    results, _ = in_virtual_time(tmp_path, engine, [*plans, *plans], "a" * 14)
    assert len(engine.requests) == 7, "seven kinds of calls, each asked for twice"
    assert [one.outputs for one in results[:7]] == [one.outputs for one in results[7:]]
    assert len({str(one.outputs) for one in results}) == 7


def test_duplicate_rows_are_called_once(tmp_path):
    engine = Engine(1.0)
    (result,), _ = in_virtual_time(tmp_path, engine, [plan()], [["a", "b", "a", "a"]])
    assert len(engine.requests) == 2
    said = result.outputs["said"]
    assert said[0] == said[2] == said[3] != said[1]
