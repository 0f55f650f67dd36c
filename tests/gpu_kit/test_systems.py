"""The kit's systems on an engine that answers at once, and the figures of a run."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from benchmarks.baselines.systems import SYSTEMS, system
from benchmarks.gpu import run_workflows, workloads
from benchmarks.gpu.engine_systems import Engine, figures_of, run_system
from benchmarks.gpu.fixed_lengths import FixedLengthEngine, answer_lengths
from benchmarks.gpu.step_log import StepLog
from helium.cost import MeasuredStep, RooflineModel
from helium.runtime import ModelAnswer
from helium.templates.tokenizer import WordTokenizer

TRADING = workloads.build(workloads.TINY[0] | {"rows": 2})


class InstantEngine:
    """Answers with as many words as were asked for, ``delay_s`` later."""

    def __init__(self, delay_s=0.0):
        self.requests, self.plans, self.delay_s = [], [], delay_s
        self.num_cancelled = 0

    async def register(self, plan):
        self.plans.append(plan)

    async def call(self, request):
        self.requests.append(request)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        sampling = request.call.sampling
        text = " ".join([f"w{sampling.seed}"] * sampling.max_tokens)
        return ModelAnswer((text,), 100, 60, sampling.max_tokens)


def run(name, engine, workload=TRADING, limit_s=120.0):
    described = Engine(engine, WordTokenizer(), 100_000)
    return run_system(system(name), workload, described, answer_lengths(workload.name), limit_s)


@pytest.mark.parametrize("name", [*SYSTEMS])
def test_every_system_runs_every_call_it_should(name):
    engine = InstantEngine()
    found = run(name, engine)
    assert found["status"] == "done"
    assert found["num_calls"] == len(engine.requests)
    assert found["num_calls"] == 2 * (56 if SYSTEMS[name].order == "plan" else 88)
    assert found["num_cached_tokens"] == 60 * found["num_calls"]
    assert (found["num_missed_tokens"], found["hit_ratio"]) == (40 * found["num_calls"], 0.6)
    has_context = SYSTEMS[name].has_context
    assert bool(engine.plans) is has_context
    assert all((request.context is not None) is has_context for request in engine.requests)


def test_answers_have_the_published_lengths_in_proportion():
    engine = InstantEngine()
    run("dataflow", engine)
    lengths = set()
    for request in engine.requests:
        sampling = request.call.sampling
        assert sampling.ignore_eos
        is_arbitrage = "arbitrage strategy" in request.call.messages[0][1]
        lengths.add((is_arbitrage, sampling.max_tokens))
    assert lengths == {(False, 8), (True, round(357 * 8 / 512))}


def test_a_run_beyond_its_limit_is_cut_off_and_its_calls_cancelled():
    engine = InstantEngine(delay_s=3600)
    found = run("dataflow", engine, limit_s=0.5)
    assert found["status"] == "cut off"
    assert found["num_calls"] == 0
    assert found["num_unanswered_calls"] == engine.num_cancelled == len(engine.requests) > 0
    assert found["latency_p50_s"] is None


def test_a_planned_run_is_cut_off_as_well():
    engine = InstantEngine(delay_s=3600)
    found = run("helium", engine, limit_s=2.0)
    assert found["status"] == "cut off"
    assert engine.num_cancelled == len(engine.requests)


def test_an_engine_that_fails_fails_the_run():
    class Broken(InstantEngine):
        async def call(self, request):
            raise ValueError("out of order")

    for name in ("langgraph", "helium"):
        with pytest.raises(Exception, match="out of order"):
            run(name, Broken())


def test_equal_prompts_are_answered_alike_and_others_differently():
    engine = InstantEngine()
    run("dataflow", engine)
    seeds = {}
    for request in engine.requests:
        assert request.call.sampling.temperature == 1.0
        seeds.setdefault(request.call.messages, set()).add(request.call.sampling.seed)
    assert all(len(found) == 1 for found in seeds.values())
    assert len({seed for [seed] in seeds.values()}) == len(seeds) == 2 * 56


def test_latencies_are_counted_from_call_to_answer():
    async def one():
        engine = FixedLengthEngine(InstantEngine(0.05), lambda call: 3, has_context=False)
        await engine.call(next(iter(requests())))
        return engine.calls

    def requests():
        from helium.plan.calls import Call
        from helium.plan.operators import Sampling
        from helium.runtime import ModelCall

        yield ModelCall(Call((("user", "x"),), None, Sampling(), None))

    figures = figures_of(asyncio.run(one()))
    assert figures["latency_p50_s"] == figures["latency_p95_s"] >= 0.04
    assert figures["num_output_tokens"] == 3


def test_systems_that_need_the_same_engine_share_it():
    groups = run_workflows.grouped(run_workflows.SYSTEMS, has_core=True)
    by_system = {name: number for number, g in enumerate(groups) for name in g["systems"]}
    assert len({by_system[n] for n in ("langgraph", "op_wise", "query_wise", "dataflow")}) == 1
    assert by_system["helium"] == by_system["helium-no-cse"] != by_system["langgraph"]
    assert len({by_system[n] for n in ("random", "lspf", "kvflow", "helium-no-order")}) == 4
    assert groups[0]["systems"][0] == groups[0]["systems"][-1] == "langgraph", "A/A"
    without = run_workflows.grouped(["helium"], has_core=False)
    assert without[0]["helium"] == {"prefix_index": "stock"}


def test_a_host_tier_is_compared_on_engines_that_must_give_blocks_up():
    without, tiered = run_workflows.tier_groups(8, 512)
    assert without["engine"] == tiered["engine"] == {"num_gpu_blocks_override": 512}
    assert (without["helium"], tiered["helium"]) == (True, {"host_gib": 8.0})
    [name] = tiered["systems"]
    assert system(name).helium == {"host_gib": 8.0} and system(name).order == "plan"
    line = {"system": name, "num_kv_blocks": 512}
    assert run_workflows.named(line) == "helium {host_gib: 8.0}, 512 blocks"
    assert "compiled core" in (run_workflows.tier_missing(False) or "") or (
        run_workflows.tier_missing(True) == "this code has none"
    )


def test_the_step_log_tells_prefill_from_decode():
    requests = {
        "new": SimpleNamespace(num_computed_tokens=30, num_prompt_tokens=100),
        "old": SimpleNamespace(num_computed_tokens=55, num_prompt_tokens=50),
        "last": SimpleNamespace(num_computed_tokens=10, num_prompt_tokens=10),
    }
    scheduled = SimpleNamespace(
        num_scheduled_tokens={"new": 20, "old": 1, "last": 1}, total_num_scheduled_tokens=22
    )
    empty = SimpleNamespace(num_scheduled_tokens={}, total_num_scheduled_tokens=0)
    pending = [scheduled, empty]
    scheduler = SimpleNamespace(
        requests=requests,
        schedule=lambda: pending.pop(0),
        update_from_output=lambda scheduled, output: output,
    )
    log = StepLog(scheduler)
    assert scheduler.schedule() is scheduled and scheduler.schedule() is empty
    assert scheduler.update_from_output(scheduled, "out") == "out"
    assert scheduler.update_from_output(empty, "out") == "out"
    [step] = log.steps
    assert step[:4] == (21, (20 * 40 + 1 * 19) / 42, 1, 55)
    assert step.ms > 0 and log.num_prefill_tokens == 21
    log.clear()
    assert (log.steps, log.num_prefill_tokens) == ([], 0)


def test_the_summary_has_ratios_noise_and_a_calibration_that_loads(tmp_path):
    def line(name, seconds, status="done"):
        values = {"workload": "w", "system": name, "makespan_s": seconds, "status": status}
        return values | {"group": 0, "num_kv_blocks": None}

    model = RooflineModel.preset("H100-80GB", "Qwen3-8B")
    work = [(0, 0.0, n, n * 3000) for n in range(1, 200)] + [(4096, 9000.0, 0, 0)] * 20
    steps = [list(MeasuredStep(*step, ms=model.step_ms(*step))) for step in work]
    report = {
        "environment": {"card": {"card": "NVIDIA H100 80GB HBM3", "memory_bytes": 85e9}},
        "runs": [line("a", 10.0), line("b", 5.0), line("c", 9.0, "cut off"), line("a", 8.0)],
        "skipped": [],
    }
    options = run_workflows.parse(["--output", str(tmp_path)])
    run_workflows.add_summary(report, steps, options)
    assert [run.get("ratio_to_first") for run in report["runs"]] == [1.0, 0.5, None, 0.8]
    assert report["noise"] == [{"workload": "w", "system": "a", "ratio": pytest.approx(0.2)}]
    assert report["calibration"] == json.loads((tmp_path / "calibration.json").read_text())
    assert report["calibration"]["flops_ratio"] == pytest.approx(model.device.flops_ratio)
    assert not report["skipped"]


def test_an_unknown_card_is_no_calibration_and_is_said(tmp_path):
    report = {
        "environment": {"card": {"card": "NVIDIA L4", "memory_bytes": 24e9}},
        "runs": [],
        "skipped": [],
    }
    options = run_workflows.parse(["--output", str(tmp_path)])
    run_workflows.add_summary(report, [[0, 0.0, 1, 10, 1.0]], options)
    assert "no figures of Qwen3-8B on NVIDIA L4" in report["skipped"][0]["reason"]


def test_without_a_gpu_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(run_workflows, "gpu_missing", lambda: "no driver")
    assert run_workflows.main(["--output", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "run_workflows.json").read_text())
    assert report["skipped"] == [{"what": "everything", "reason": "no driver"}]
    assert report["environment"]["python"]
