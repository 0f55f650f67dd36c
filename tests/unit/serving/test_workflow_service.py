"""Runs side by side on one server, in virtual time."""

import asyncio
import json
import sqlite3

from helium import graphs, ops
from helium.plan.compiled_plan import bind
from helium.plan.operators import Sampling
from helium.runtime import EngineGone, PromptCache
from helium.runtime.run_store import RunSpec
from tests.unit.runtime.engines import Engine
from tests.unit.runtime.virtual_time import run
from vllm_helium.serving import workflow_service
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


def in_virtual_time(folder, engine, plans, words, **options):
    async def main():
        service = WorkflowService(engine, None, folder, **options)
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


def test_a_run_teaches_the_server_how_long_outputs_are_and_is_explained_as_it_was_planned(tmp_path):
    async def explained(service, name):
        report = json.loads(await service.explain(name, "json"))
        (row,) = report["schedule"]
        return row["output_tokens"], row["measured"]["output_tokens"]

    async def one_server(word):
        service = WorkflowService(Engine(), None, tmp_path)
        try:
            name = await service.submit("w", plan(), {"word": word})
            await service.wait(name)
            return await explained(service, name)
        finally:
            await service.close()

    (expected, measured), _ = run(one_server("a"))
    assert measured == 3 and expected > 3, "nothing was known of it"
    (expected, measured), _ = run(one_server("b"))
    assert expected == measured == 3, "the next server plans with what the first one learned"


def test_every_run_is_traced_where_spans_are_on(tmp_path, monkeypatch):
    traces = []
    monkeypatch.setattr(workflow_service, "export_spans", traces.append)

    async def main(has_spans):
        service = WorkflowService(Engine(), None, tmp_path / str(has_spans), has_spans=has_spans)
        try:
            await finished(service, [plan(), plan()], "ab")
            await asyncio.gather(*service._followers)
        finally:
            await service.close()

    asyncio.run(main(False))
    assert not traces
    asyncio.run(main(True))
    assert [(trace.status, len(trace.spans)) for trace in traces] == [("done", 1)] * 2
    assert all(trace.schedule is not None for trace in traces)


def test_a_prompt_cache_answers_the_next_servers_runs_and_keeps_tenants_apart(tmp_path):
    async def main(engine, salt):
        cache = PromptCache(tmp_path / "prompts.db")
        service = WorkflowService(engine, None, prompt_cache=cache, revision="m")
        try:
            run = await service.submit("w", plan(), {"word": ["a", "b"]}, cache_salt=salt)
            await service.wait(run)
            return (await service.result(run)).outputs
        finally:
            await service.close()

    engine = Engine()
    first = run(main(engine, "t1"))[0]
    assert run(main(engine, "t1"))[0] == first and len(engine.requests) == 2
    assert run(main(engine, "t2"))[0] == first and len(engine.requests) == 4


def test_old_runs_go_though_not_every_submit_looks_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_service, "MAX_KEPT", 2)
    monkeypatch.setattr(workflow_service, "PRUNE_EVERY", 4)

    async def main():
        service = WorkflowService(Engine(), None, tmp_path)
        num_listed, kept = 0, []
        try:
            runs = service.runs.runs

            def count():
                nonlocal num_listed
                num_listed += 1
                return runs()

            service.runs.runs = count
            for word in "abcdefghi":
                await finished(service, [plan()], [word])
                kept.append(len(runs()))
            return num_listed, kept
        finally:
            await service.close()

    num_listed, kept = run(main())[0]
    assert num_listed == 3
    assert kept == [1, 2, 3, 4, 3, 4, 5, 6, 3]


def test_runs_submitted_at_once_look_for_old_ones_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workflow_service, "MAX_KEPT", 2)
    monkeypatch.setattr(workflow_service, "PRUNE_EVERY", 10)

    async def main():
        service = WorkflowService(Engine(), None, tmp_path)
        try:
            await finished(service, [plan()] * 10, "abcdefghij")
            starts = (service.submit("w", plan(), {"word": word}) for word in "klmno")
            for name in await asyncio.gather(*starts):
                await service.wait(name)
            return len(service.runs.runs())
        finally:
            await service.close()

    assert asyncio.run(main()) == 2 + 5
    assert "is not in" not in caplog.text, "each old run was deleted once"


def test_a_large_run_whose_engine_dies_is_left_off_and_ended_by_the_next_server(tmp_path):
    rows = [f"w{row}" for row in range(3000)]  # more than are sent at once

    class Dying(Engine):
        async def call(self, request):
            if len(self.requests) > 700:
                raise EngineGone("the engine core died")
            return await super().call(request)

    async def main():
        service = WorkflowService(Dying(1.0), None, tmp_path)
        name = await service.submit("w", plan(), {"word": rows})
        await service.wait(name)
        left_off = service.runs.info(name)
        await service.close()
        engine = Engine(1.0)
        service = WorkflowService(engine, None, tmp_path)
        await service.resume_all()
        await service.wait(name)
        result, status = await service.result(name), service.runs.info(name).status
        await service.close()
        return left_off, result, status, len(engine.requests)

    (left_off, result, status, num_made), _ = run(main())
    assert left_off.status == "interrupted" and left_off.num_failures == 0
    assert status == "done" and result.failures == []
    assert num_made == len(rows) - left_off.num_done
    assert [text.split("|")[0] for text in result.outputs["said"]] == [f"say {w}" for w in rows]


def test_a_run_that_cannot_go_on_keeps_no_other_one_from_it(tmp_path, monkeypatch):
    async def main():
        service = WorkflowService(Engine(), None, tmp_path)
        spec = RunSpec("w", "s", bind(plan(), {"word": ["a"]}))
        for name in ("damaged", "puzzling", "sound"):
            service.runs.create(name, spec)
        with sqlite3.connect(tmp_path / "runs.db") as other:
            other.execute("UPDATE runs SET spec = x'7b22a0' WHERE id = 'damaged'")
        load = service.runs.load
        monkeypatch.setattr(service.runs, "load", lambda run: load(run) if run != "puzzling" else 1)
        try:
            await service.resume_all()
            await service.wait("sound")
            return {info.id: info.status for info in service.runs.runs()}
        finally:
            await service.close()

    statuses = asyncio.run(main())
    assert statuses == {"damaged": "interrupted", "puzzling": "interrupted", "sound": "done"}
