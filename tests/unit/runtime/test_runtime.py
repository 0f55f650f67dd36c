"""The runtime: several runs at once, their events, cancelling, resuming, caching and learning."""

import asyncio
import contextlib
import sqlite3
import threading

import pytest

from benchmarks.workflows import iterative, mapreduce, trading
from helium import function, graphs, ops
from helium.errors import ConfigError, EngineError, WorkflowError
from helium.plan.interpret import interpret
from helium.plan.operators import Sampling
from helium.runtime import (
    EngineUnavailable,
    ModelAnswer,
    ProfileStore,
    PromptCache,
    RetryPolicy,
    RunError,
    RunStore,
    Runtime,
    RuntimeOptions,
)
from helium.runtime.data_folder import data_folder
from helium.runtime.events import (
    CallFinished,
    CallStarted,
    FunctionFinished,
    RowDone,
    RowFailed,
    RunFinished,
    RunStarted,
)
from helium.runtime.profile_store import workflow_signature
from helium.runtime.run_store import RunSpec
from helium.templates.tokenizer import WordTokenizer
from tests.property.random_plans import fake_model
from tests.unit.runtime.engines import Engine, echo
from tests.unit.runtime.virtual_time import run as run_in_virtual_time


@function(name="runtime_test.short")
def short(text: str) -> str:
    return text.split("|")[0].upper()


def build(sampling=Sampling()):  # noqa: B008
    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", question)], name="draft", sampling=sampling)
    final = ops.llm([ops.Msg("user", ["of ", short(draft)])], name="final", sampling=sampling)
    return graphs.build({"draft": draft, "final": final})


BATCH = {"question": ["a", "b", "c"]}


def on(program):
    return asyncio.run(program)


async def everything(handle):
    return [event async for event in handle.events()]


@pytest.mark.parametrize(
    "build_workload", [mapreduce.build_mmlu, iterative.build_amazon, trading.build]
)
@pytest.mark.parametrize("num_engines", [1, 2])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_run_equals_the_reference_interpreter(
    tmp_path, build_workload, num_engines, has_tokenizer
):
    workload = build_workload(3, scale=0.1)
    answer = lambda call: fake_model(call, "", 0)  # noqa: E731
    engines = [Engine(answer=answer) for _ in range(num_engines)]

    async def main():
        store = RunStore(tmp_path / "runs.db")
        tokenizer = WordTokenizer() if has_tokenizer else None
        async with Runtime(engines, tokenizer, store=store) as runtime:
            return await runtime.run(workload.graph, workload.batch)

    result = on(main())
    assert result.outputs == interpret(workload.graph.compile(**workload.batch), _model)
    for engine in engines:
        # Without the model's own tokenizer no engine is told anything it might believe.
        assert len(engine.plans) == has_tokenizer
        assert all((r.context is not None) == has_tokenizer for r in engine.requests)
    if num_engines == 2:
        assert all(engine.requests for engine in engines)


def _model(call, operator, row):
    return fake_model(call, "", 0)


def test_events_tell_the_whole_story_in_order(tmp_path):
    async def main():
        async with Runtime(Engine(), store=RunStore(tmp_path / "runs.db")) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
            events, late = await everything(handle), await everything(handle)
            assert events == late
            assert handle.progress == (6, 6)
            return events, await handle.result()

    events, result = on(main())
    assert events[0] == RunStarted("r1", 6) and events[-1] == RunFinished("done", 0)
    position = {
        (type(event), event.operator, event.row): number
        for number, event in enumerate(events)
        if hasattr(event, "operator")
    }
    for row in range(3):
        started, finished = (
            [position[kind, name, row] for name in ("draft", "final")]
            for kind in (CallStarted, CallFinished)
        )
        applied = position[FunctionFinished, "short", row]
        assert started[0] < finished[0] < applied < started[1] < finished[1]
    rows = [event for event in events if isinstance(event, RowDone)]
    assert len(rows) == 6
    for event in rows:
        assert result.outputs[event.output][event.row] == event.value


def test_what_is_told_is_on_disk_by_then(tmp_path):
    path = tmp_path / "runs.db"

    async def main():
        async with Runtime(Engine(), store=RunStore(path)) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
            async for event in handle.events():
                with contextlib.closing(RunStore(path)) as other:
                    written = [event for _, event in other.events("r1")]
                if isinstance(event, (RunStarted, CallFinished, FunctionFinished, RunFinished)):
                    assert event in written
                elif isinstance(event, RowDone):
                    assert ("final" if event.output == "final" else "draft", event.row) in [
                        (e.operator, e.row) for e in written if isinstance(e, CallFinished)
                    ]

    on(main())


def test_several_runs_share_calls_and_engines():
    engine = Engine(seconds=1)

    async def main():
        async with Runtime(engine) as runtime:
            return await asyncio.gather(*(runtime.run(build(), BATCH) for _ in range(4)))

    results, seconds = run_in_virtual_time(main())
    assert seconds == pytest.approx(2, abs=0.01) and len(engine.requests) == 6
    assert all(result.outputs == results[0].outputs for result in results)


def test_streamed_rows_come_as_they_are_done():
    class Uneven(Engine):
        async def call(self, request):
            self.seconds = {"a": 3, "b": 1, "c": 2}.get(request.call.messages[-1][1], 0)
            return await super().call(request)

    async def main():
        seen = []
        async with Runtime(Uneven()) as runtime:
            handle = await runtime.submit(build(), BATCH)
            async for event in handle.events():
                if isinstance(event, RowDone) and event.output == "final":
                    seen.append((round(asyncio.get_running_loop().time()), event.row))
        return seen

    assert run_in_virtual_time(main())[0] == [(1, 1), (2, 2), (3, 0)]


def test_cancel_ends_the_calls_keeps_what_is_done_and_can_be_resumed(tmp_path):
    engine = Engine(seconds=1)

    async def main():
        async with Runtime(engine, store=RunStore(tmp_path / "runs.db")) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
            await asyncio.sleep(1.5)
            await runtime.cancel("r1")
            result = await handle.result()
            (info,) = await runtime.list()
            assert (info.status, info.num_done, info.num_calls) == ("cancelled", 3, 6)
            assert engine.num_cancelled == 3 and engine.num_open == 0
            with pytest.raises(RunError, match="is cancelled; only a running one"):
                await runtime.cancel("r1")
            again = await (await runtime.resume("r1")).result()
            (info,) = await runtime.list()
            assert (info.status, info.num_done) == ("done", 6)
            return result, again

    (result, again), _ = run_in_virtual_time(main())
    assert all(result.outputs["draft"]) and result.outputs["final"] == [None] * 3
    assert {failure.reason for failure in result.failures} == {"the run was cancelled"}
    assert again.failures == [] and all(again.outputs["final"])
    assert again.outputs["draft"] == result.outputs["draft"]
    assert len(engine.requests) == 3 + 3 + 3


def test_another_process_can_cancel_and_watch(tmp_path):
    """Two runtimes on one store know nothing of each other but the file."""
    engine = Engine(seconds=30)

    async def main():
        async with (
            Runtime(engine, store=RunStore(tmp_path / "runs.db")) as here,
            Runtime(Engine(), store=RunStore(tmp_path / "runs.db")) as there,
        ):
            handle = await here.submit(build(), BATCH, run="r1")
            watching = asyncio.ensure_future(_collect(there.watch("r1")))
            await asyncio.sleep(40)
            with pytest.raises(RunError, match="is running"):
                await there.resume("r1")
            await there.cancel("r1")
            await handle.result()
            return await watching, handle.status

    (events, status), seconds = run_in_virtual_time(main())
    assert status == "cancelled" and 40 < seconds < 43
    kinds = [type(event) for event in events]
    assert kinds[0] is RunStarted and kinds[-1] is RunFinished
    assert kinds.count(CallFinished) == 3 and kinds.count(RowFailed) == 3


async def _collect(events):
    return [event async for event in events]


def test_leaving_the_runtime_leaves_runs_to_be_resumed(tmp_path):
    engine = Engine(seconds=1)

    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(engine, store=store) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
            await asyncio.sleep(1.5)
        assert handle.is_over and store.info("r1").status == "interrupted"
        assert engine.num_open == 0
        async with Runtime(engine, store=store) as runtime:
            return await (await runtime.resume("r1")).result()

    result, _ = run_in_virtual_time(main())
    assert all(result.outputs["final"]) and len(engine.requests) == 9


def test_a_run_left_off_before_it_began_can_be_resumed(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(Engine(), store=store) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
        assert await everything(handle) == [] and handle.status == "interrupted"
        async with Runtime(Engine(), store=store) as runtime:
            return await (await runtime.resume("r1")).result()

    assert all(on(main()).outputs["final"])


def test_rows_that_failed_are_tried_again_when_resumed(tmp_path):
    engine = Engine(answer=lambda call: _refuse(call, "b"))

    async def main():
        async with Runtime(engine, store=RunStore(tmp_path / "runs.db")) as runtime:
            first = await (await runtime.submit(build(), BATCH, run="r1")).result()
            info = (await runtime.list())[0]
            assert (info.status, info.num_failures) == ("done", 1)
            engine.answer = echo
            second = await (await runtime.resume("r1")).result()
            assert (await runtime.list())[0].num_failures == 0
            third = await (await runtime.resume("r1")).result()
            return first, second, third

    first, second, third = on(main())
    assert [value is None for value in first.outputs["final"]] == [False, True, False]
    assert second.outputs["final"][1] and second.failures == []
    assert second.total.num_calls == 2
    assert third.outputs == second.outputs and third.total.num_calls == 0


def _refuse(call, text):
    if call.messages[-1][1] == text:
        raise EngineError("refused")
    return echo(call)


def test_a_run_over_a_dead_engine_fails_its_rows_and_goes_on_when_resumed(tmp_path):
    def dead(call):
        raise EngineUnavailable("connection refused")

    engine = Engine(answer=dead)
    options = RuntimeOptions(retries=RetryPolicy(max_attempts=3))

    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(engine, store=store, options=options) as runtime:
            first = await (await runtime.submit(build(), BATCH, run="r1")).result()
            engine.answer = echo
            return first, await (await runtime.resume("r1")).result()

    (first, second), _ = run_in_virtual_time(main())
    assert len(first.failures) == 3 and second.failures == []
    assert "connection refused; gave up after 3 attempt(s)" in first.failures[0].reason


def test_an_engine_that_refuses_the_plan_fails_the_run_as_a_whole(tmp_path):
    class Refusing(Engine):
        async def register(self, plan):
            raise EngineError("no plans today")

    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(Refusing(), WordTokenizer(), store=store) as runtime:
            handle = await runtime.submit(build(), BATCH, run="r1")
            with pytest.raises(EngineError, match="no plans today"):
                await handle.result()
            assert (await runtime.list())[0].status == "failed"
            return await everything(handle)

    assert [type(event) for event in on(main())] == [RunStarted, RunFinished]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_engine_that_never_answers_a_plan_does_not_keep_the_run_from_its_end(is_cancelled):
    class Silent(Engine):
        async def register(self, plan):
            await asyncio.Event().wait()

    async def main():
        async with Runtime(Silent(), WordTokenizer()) as runtime:
            handle = await runtime.submit(build(), BATCH, timeout_s=None if is_cancelled else 2)
            await asyncio.sleep(1)
            if is_cancelled:
                handle.cancel()
            result = await handle.result()
            return handle.status, {failure.reason for failure in result.failures}

    (status, reasons), _ = run_in_virtual_time(main())
    assert status == ("cancelled" if is_cancelled else "timed_out")
    assert reasons == {"the run was cancelled" if is_cancelled else "the run took more than 2 s"}


def test_a_time_limit_of_the_run(tmp_path):
    async def main():
        async with Runtime(Engine(seconds=1), store=RunStore(tmp_path / "r.db")) as runtime:
            handle = await runtime.submit(build(), BATCH, timeout_s=1.5)
            result = await handle.result()
            return result, handle.status

    (result, status), seconds = run_in_virtual_time(main())
    assert status == "timed_out" and seconds == pytest.approx(1.5, abs=0.01)
    assert all(result.outputs["draft"]) and result.outputs["final"] == [None] * 3


def test_the_prompt_cache_serves_planning_and_calls(tmp_path):
    engine, cache = Engine(), PromptCache(tmp_path / "prompts.db")

    async def main():
        async with Runtime(engine, revision="m", prompt_cache=cache) as runtime:
            first = await runtime.run(build(), BATCH)
            await asyncio.sleep(0.1)
            second = await runtime.run(build(), {"question": ["a", "b", "d"]})
            return first, second

    first, second = on(main())
    assert first.outputs["final"][:2] == second.outputs["final"][:2]
    assert len(engine.requests) == 6 + 2
    assert second.counts.keys() == {"draft", "final"}
    # The drafts of "a" and "b" were known to the planner, the finals behind a function were not.
    assert second.counts["draft"].num_cache_hits == 0
    assert second.counts["final"].num_cache_hits == 2


def test_a_cache_needs_a_revision(tmp_path):
    with pytest.raises(ConfigError, match="revision"):
        Runtime(Engine(), prompt_cache=PromptCache(tmp_path / "prompts.db"))


def test_profiles_are_learned_and_used_by_the_next_plan(tmp_path):
    profiles = ProfileStore(tmp_path / "profiles")

    class Short(Engine):
        async def call(self, request):
            return ModelAnswer(echo(request.call), 10, 4, 6)

    graph = build(Sampling(temperature=1, n=2))
    signature = workflow_signature(graph.plan)

    async def main(engine):
        async with Runtime(engine, WordTokenizer(), profiles=profiles) as runtime:
            await runtime.run(_first_of_two(), BATCH)

    def _first_of_two():
        question = ops.placeholder("question")
        drafts = ops.llm(
            [ops.Msg("user", question)], name="d", sampling=Sampling(temperature=1, n=2)
        )
        return graphs.build({"out": drafts})

    assert signature != workflow_signature(_first_of_two().plan)
    engines = [Short(), Short()]
    on(main(engines[0]))
    profile = profiles.load(workflow_signature(_first_of_two().plan))
    (statistics,) = profile.outputs.values()
    assert statistics.count == 3 and statistics.mean == 3.0  # 6 tokens over n = 2 outputs
    on(main(engines[1]))
    lengths = [engine.plans[0].operators[0].output_tokens for engine in engines]
    assert lengths[0] == 256 and lengths[1] == pytest.approx(3.0)
    assert profiles.load(workflow_signature(_first_of_two().plan)).outputs.popitem()[1].count == 6


def test_functions_are_learned_too_and_answers_from_caches_are_not(tmp_path):
    profiles = ProfileStore(tmp_path / "profiles")
    cache = PromptCache(tmp_path / "prompts.db")
    graph = build()

    async def main():
        async with Runtime(
            Engine(), WordTokenizer(), revision="m", prompt_cache=cache, profiles=profiles
        ) as runtime:
            await runtime.run(graph, {"question": ["a", "a", "b"]})
            await runtime.run(graph, {"question": ["a", "a", "b"]})

    on(main())
    profile = profiles.load(workflow_signature(graph.plan))
    counts = sorted(statistics.count for statistics in profile.outputs.values())
    assert counts == [2, 2, 4]  # drafts and finals once each, the function twice


def test_a_workflow_is_found_again_under_other_names_and_not_under_another_text():
    def graph(name, text):
        question = ops.placeholder("question")
        return graphs.build({"o": ops.llm([ops.Msg("user", [text, question])], name=name)})

    signatures = [workflow_signature(graph(*g).plan) for g in [("a", "x"), ("b", "x"), ("a", "y")]]
    assert signatures[0] == signatures[1] != signatures[2]


def test_a_profile_that_cannot_be_read_is_learned_anew(tmp_path, caplog):
    profiles = ProfileStore(tmp_path)
    for damaged in (b"{", b'{"\xa0'):
        caplog.clear()
        (tmp_path / "abc.json").write_bytes(damaged)
        assert profiles.load("abc").outputs == {}
        assert "starting anew" in caplog.text


def test_the_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "vllm-helium"
    assert ProfileStore().folder == tmp_path / "vllm-helium" / "profiles"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "home" / ".local" / "share" / "vllm-helium"


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(Engine(), store=store) as runtime:
            with pytest.raises(WorkflowError, match="lacks"):
                await runtime.submit(build(), {})
            return store.runs()

    assert on(main()) == []


@pytest.mark.parametrize("run", ["", "../x", "a b", "-a", "x" * 101, ".hidden"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path, run):
    store = RunStore(tmp_path / "runs.db")
    spec = RunSpec("w", "s", build().compile(**BATCH))
    with pytest.raises(RunError, match="an id has"):
        store.create(run, spec)


def test_an_id_is_taken_once(tmp_path):
    async def main():
        async with Runtime(Engine(), store=RunStore(tmp_path / "runs.db")) as runtime:
            await (await runtime.submit(build(), BATCH, run="r1")).result()
            with pytest.raises(RunError, match="exists already"):
                await runtime.submit(build(), BATCH, run="r1")

    on(main())


def test_an_unknown_run_is_an_error_that_names_the_others(tmp_path):
    async def main():
        async with Runtime(Engine(), store=RunStore(tmp_path / "runs.db")) as runtime:
            await (await runtime.submit(build(), BATCH, run="r1")).result()
            for action in (runtime.resume, runtime.cancel):
                with pytest.raises(RunError, match=r"'nope' is not in .*\['r1'\]"):
                    await action("nope")
            with pytest.raises(RunError, match="nope"):
                await _collect(runtime.watch("nope"))

    on(main())


def test_a_store_keeps_a_spec_exactly(tmp_path):
    store = RunStore(tmp_path / "runs.db")
    spec = RunSpec("w", "s", build(Sampling(stop=("x",), seed=3)).compile(**BATCH), "t", 5.0)
    store.create("r1", spec)
    loaded = store.load("r1")
    assert loaded == spec and loaded.compiled.columns == {"question": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE runs SET spec = '{'", "damaged"),
        ("UPDATE runs SET spec = json_set(spec, '$.version', 99)", "version 99"),
        ("INSERT INTO events VALUES (1, 'r1', '{\"type\": \"?\"}')", "damaged"),
        ("UPDATE runs SET spec = x'7b22a0'", "damaged"),
        ("INSERT INTO events VALUES (1, 'r1', x'7b22a0')", "damaged"),
        ("DROP TABLE events", "cannot be read"),
    ],
)
def test_a_damaged_store_says_so(tmp_path, damage, message):
    store = RunStore(tmp_path / "runs.db")
    store.create("r1", RunSpec("w", "s", build().compile(**BATCH)))
    other = sqlite3.connect(tmp_path / "runs.db")
    other.execute(damage)
    other.commit()
    with pytest.raises(RunError, match=message):
        store.load("r1")


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "runs.db").write_bytes(b"something else" * 500)
    with pytest.raises(RunError, match="cannot be opened"):
        RunStore(tmp_path / "runs.db")
    PromptCache(tmp_path / "prompts.db").close()
    with pytest.raises(RunError):
        RunStore(tmp_path / "prompts.db").runs()


def test_a_deleted_run_is_gone(tmp_path):
    async def main():
        store = RunStore(tmp_path / "runs.db")
        async with Runtime(Engine(), store=store) as runtime:
            for run in ("r1", "r2"):
                await (await runtime.submit(build(), BATCH, run=run)).result()
        store.delete("r1")
        assert [info.id for info in store.runs()] == ["r2"]
        assert store.events("r1") == [] and store.events("r2")

    on(main())


def test_nothing_is_left_running():
    async def main():
        async with Runtime(Engine()) as runtime:
            await runtime.run(build(), BATCH)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    on(main())


def test_of_two_submissions_of_one_id_at_once_one_is_refused_also_without_a_store():
    graph = graphs.build({"a": ops.llm([ops.Msg("user", ["Say ", ops.placeholder("q")])])})

    async def main():
        async with Runtime(Engine()) as runtime:
            handles = await asyncio.gather(
                *(runtime.submit(graph, {"q": ["x"]}, run="r") for _ in range(2)),
                return_exceptions=True,
            )
            refused = [handle for handle in handles if isinstance(handle, RunError)]
            (handle,) = [handle for handle in handles if not isinstance(handle, RunError)]
            result = await handle.result()
        return refused, result

    refused, result = asyncio.run(main())
    assert len(refused) == 1 and "take another id" in str(refused[0])
    assert result.failures == []


def test_a_run_that_could_not_be_planned_is_in_no_list(tmp_path, monkeypatch):
    graph = graphs.build({"a": ops.llm([ops.Msg("user", ["Say ", ops.placeholder("q")])])})

    async def main(store):
        async with Runtime(Engine(), store=store) as runtime:
            with monkeypatch.context() as patched:
                patched.setattr("helium.runtime.runtime.plan_workflow", lambda *_, **__: 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    await runtime.submit(graph, {"q": ["x"]}, run="r")
            with monkeypatch.context() as patched:
                patched.setattr("helium.runtime.runtime.Driver", lambda *_: 1 // 0)
                with pytest.raises(ZeroDivisionError):
                    await runtime.submit(graph, {"q": ["x"]}, run="r")
            # Taking it back is queued before this.
            handle = None
            while handle is None:
                with contextlib.suppress(RunError):
                    handle = await runtime.submit(graph, {"q": ["x"]}, run="r")
            return await handle.result()

    store = RunStore(tmp_path / "runs.db")
    assert asyncio.run(main(store)).failures == []
    assert [info.status for info in store.runs()] == ["done"]
    store.close()


def test_a_list_that_takes_long_holds_up_no_checkpoint(tmp_path, monkeypatch):
    graph = graphs.build({"a": ops.llm([ops.Msg("user", ["Say ", ops.placeholder("q")])])})
    goes_on = threading.Event()
    store = RunStore(tmp_path / "runs.db")
    listing = store.runs

    def slow_list():
        with store._list_lock:  # as a long SELECT holds it
            goes_on.wait(60)
        return listing()

    monkeypatch.setattr(store, "runs", slow_list)

    async def main():
        async with Runtime(Engine(), store=store) as runtime:
            asked = asyncio.ensure_future(runtime.list())
            await asyncio.sleep(0)
            handle = await runtime.submit(graph, {"q": ["x", "y"]}, run="r")
            result = await handle.result()
            was_done = asked.done()
            goes_on.set()
            return result, was_done, await asked

    result, was_done, infos = asyncio.run(main())
    assert result.failures == [] and not was_done
    assert [info.status for info in infos] == ["done"]
    store.close()
