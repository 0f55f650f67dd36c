"""A run's trace: figures, critical path, and the file Perfetto reads."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest

from helium import function, graphs, ops
from helium.dsl.graph import Graph
from helium.errors import EngineError, PlanError
from helium.protocol import EnginePlan
from helium.runtime import ModelAnswer, ModelCall, Runtime, RunTrace
from helium.runtime.backend import reported
from helium.runtime.invoke import plan
from helium.runtime.processor import run_plan
from helium.runtime.telemetry import export_spans
from helium.templates.tokenizer import WordTokenizer
from tests.unit.runtime import virtual_time

SLOW_S, FAST_S = 3.0, 1.0


class _Engine:
    """Takes ``SLOW_S`` for the slow branch and ``FAST_S`` for everything else."""

    async def register(self, plan: EnginePlan) -> None:
        """Takes any plan."""

    async def call(self, request: ModelCall) -> ModelAnswer:
        text = request.call.messages[-1][1]
        if "fail" in text:
            raise EngineError("no")
        await asyncio.sleep(SLOW_S if text.startswith("slow") else FAST_S)
        return ModelAnswer((f"<{text}>",), 10, 4, 2, 5.0, {"new": 6})


def _graph() -> Graph:
    question = ops.placeholder("question")
    slow = ops.llm([ops.Msg("user", ["slow ", question])], name="slow")
    fast = ops.llm([ops.Msg("user", ["fast ", question])], name="fast")
    both = ops.fmt("{} {}", slow, fast)
    return graphs.build({"answer": ops.llm([ops.Msg("user", ["join ", both])], name="join")})


def _run(questions: list[str]):
    schedule = plan(_graph().compile(question=questions), WordTokenizer())
    trace = RunTrace(clock=lambda: asyncio.get_running_loop().time())
    running = run_plan(schedule.compiled, _Engine(), schedule=schedule, on_event=trace.observe)
    return schedule, trace, virtual_time.run(running)[0]


def test_explain_analyze_shows_what_a_run_measured() -> None:
    schedule, trace, result = _run(["a", "b"])
    measured = trace.measured()
    assert set(measured) == {"slow", "fast", "join"}
    slow = measured["slow"]
    assert (slow.num_calls, slow.prefill_tokens, slow.cached_tokens) == (2, 12, 8)
    assert (slow.output_tokens, slow.queue_ms, slow.misses) == (4, 10.0, {"new": 12})
    assert slow.start_ms == pytest.approx(0) and slow.end_ms == pytest.approx(1e3 * SLOW_S)
    assert measured["join"].start_ms == pytest.approx(1e3 * SLOW_S)
    assert trace.elapsed_s == pytest.approx(SLOW_S + FAST_S)
    assert trace.critical_path(schedule.compiled) == ("slow", "join")
    text = schedule.explain(analyze=trace)
    assert "Critical path, measured\n  slow -> join\n" in text
    assert "Cache misses, measured" in text
    report = json.loads(schedule.explain("json", analyze=trace))
    assert report["measured_path"] == ["slow", "join"]
    rows = {row["operator"]: row["measured"] for row in report["schedule"]}
    assert rows["slow"]["misses"] == {"new": 12}
    assert "Measured: slow → join" in schedule.explain("html", analyze=trace)
    # A result has the same counts, without times.
    of_result = result.measured()["slow"]
    assert of_result.prefill_tokens == 12 and of_result.end_ms == 0.0
    assert "slow" in schedule.explain(analyze=result)


def test_overlapping_calls_get_tracks_of_their_own() -> None:
    schedule, trace, _ = _run(["a", "b", "c"])
    trace.schedule = schedule
    raw = json.dumps(trace.to_chrome())
    events = json.loads(raw)["traceEvents"]
    spans = [event for event in events if event["ph"] == "X" and event["pid"] > 1]
    assert len(spans) == 9
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in spans:
        place = (event["pid"], event["tid"])
        tracks.setdefault(place, []).append((event["ts"], event["ts"] + event["dur"]))
    for track in tracks.values():
        ordered = sorted(track)
        assert all(a[1] <= b[0] for a, b in pairwise(ordered))
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"slow", "slow (2)", "slow (3)"} <= names
    flow = [event["ph"] for event in events if event.get("cat") == "critical"]
    assert flow == ["s", "f"]


def test_failures_and_functions_are_in_the_trace() -> None:
    @function(name="trace_test_upper")
    def upper(text: str) -> str:
        return text.upper()

    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", question)], name="draft")
    graph = graphs.build({"answer": ops.llm([ops.Msg("user", upper(draft))], name="final")})
    schedule = plan(graph.compile(question=["a", "fail"]), WordTokenizer())
    trace = RunTrace()

    class Quick(_Engine):
        async def call(self, request: ModelCall) -> ModelAnswer:
            if "fail" in request.call.messages[-1][1]:
                return await super().call(request)
            return ModelAnswer(("ok",))

    asyncio.run(run_plan(schedule.compiled, Quick(), schedule=schedule, on_event=trace.observe))
    origins = sorted((span.operator, span.row, span.origin) for span in trace.spans)
    assert ("draft", 0, "engine") in origins and ("draft", 1, "failed") in origins
    assert "function" in {origin for _, _, origin in origins}
    path = trace.critical_path(schedule.compiled)
    assert path[0] == "draft" and path[-1] == "final" and len(path) == 3
    notes = [event["args"] for event in trace.to_chrome()["traceEvents"] if event["ph"] == "X"]
    assert {"failed": "no"} in notes


def test_a_listener_of_a_run_hears_every_event(tmp_path: Path) -> None:
    async def main() -> tuple[RunTrace, int]:
        trace = RunTrace()
        async with Runtime(_Engine(), WordTokenizer()) as runtime:
            run = await runtime.submit(_graph(), {"question": ["a"]})
            trace.follow(run)
            await run.result()
            assert "Critical path, measured" in trace.explain()
            return trace, len([event async for event in run.events()])

    trace, num_events = asyncio.run(main())
    assert (trace.status, len(trace.spans)) == ("done", 3) and num_events > 3


def test_a_trace_becomes_spans_under_the_runs_own() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    simple = pytest.importorskip("opentelemetry.sdk.trace.export")
    exporter = export.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(simple.SimpleSpanProcessor(exporter))
    _, trace, _ = _run(["a"])
    assert export_spans(trace, provider.get_tracer("test"))
    *calls, whole = exporter.get_finished_spans()
    assert whole.name == "helium.run" and len(calls) == 3
    assert {span.parent.span_id for span in calls} == {whole.context.span_id}
    slow = next(span for span in calls if span.attributes["helium.operator"] == "slow")
    assert slow.end_time - slow.start_time == pytest.approx(1e9 * SLOW_S, rel=1e-6)
    assert slow.attributes["gen_ai.usage.prompt_tokens"] == 10


def test_without_a_plan_there_is_nothing_to_explain() -> None:
    with pytest.raises(PlanError, match="no plan"):
        RunTrace().explain()


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (None, (0.0, {})),
        ({"queue_ms": 2, "misses": {"new": 3, "evicted": "x"}}, (2.0, {"new": 3})),
        ({"queue_ms": "?", "misses": [1]}, (0.0, {})),
        ("nonsense", (0.0, {})),
    ],
)
def test_reports_of_other_versions_are_read_as_far_as_they_go(
    report: object, expected: tuple[float, dict[str, int]]
) -> None:
    assert reported(report) == expected
