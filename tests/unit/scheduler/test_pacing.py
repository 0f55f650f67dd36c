"""Prefill beside running decodes is limited, for planned work only."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from tests.unit.scheduler.bench import Bench, tokens
from vllm_helium.scheduler.pacing import step_budget

PLAN = EnginePlan(1, "paced", (PlanOperator("op", rank=0, num_calls=9, output_tokens=20),))


def planned(bench: Bench, row: int) -> WorkflowContext:
    return WorkflowContext(bench.register(PLAN), "run", "op", row=row)


@pytest.mark.parametrize(
    ("num_decoding", "tokens_per_decode", "prefill_tokens", "budget"),
    [
        (0, 1, 100, 1000),  # nothing waits for the step
        (10, 1, 100, 110),
        (10, 4, 100, 140),  # three drafts each
        (950, 1, 100, 1000),  # never above upstream's
        (10, 1, 0, 1000),  # off
    ],
)
def test_the_budget_is_the_decodes_and_some_prefill(
    num_decoding, tokens_per_decode, prefill_tokens, budget
):
    assert step_budget(1000, num_decoding, tokens_per_decode, prefill_tokens) == budget


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_planned_prompt_is_computed_in_small_parts_beside_decodes(async_scheduling):
    bench = Bench({"prefill_tokens": 64}, async_scheduling=async_scheduling)
    bench.add("first", tokens(0, 500), 40, planned(bench, 0))
    assert bench.step() == {"first": 500}, "nothing decodes yet: upstream's budget"
    bench.add("second", tokens(10_000, 200), 40, planned(bench, 1))
    bench.finish()
    parts = [step["second"] for step in bench.steps if step.get("second", 0) > 1]
    assert parts == [64, 64, 64, 8]
    assert bench.scheduler._status()["num_paced_steps"] >= 4
    assert bench.scheduler.max_num_scheduled_tokens == 4096


def test_ordinary_traffic_has_upstreams_budget():
    bench = Bench({"prefill_tokens": 64})
    bench.add("planned", tokens(50_000, 20), 2, planned(bench, 0))
    bench.add("first", tokens(0, 500), 40)
    while "planned" not in bench.ended:
        bench.step()
    bench.add("second", tokens(10_000, 200), 40)
    bench.finish()
    assert 200 in [step.get("second") for step in bench.steps]


def test_an_aborted_plan_paces_nobody_any_more():
    bench = Bench({"prefill_tokens": 64})
    bench.add("planned", tokens(50_000, 20), 90, planned(bench, 0))
    bench.step()
    bench.engine.abort("planned")
    bench.add("first", tokens(0, 500), 40)
    bench.step()
    bench.add("second", tokens(10_000, 200), 40)
    bench.finish()
    assert 200 in [step.get("second") for step in bench.steps]


def test_without_chunked_prefill_nothing_is_paced():
    bench = Bench(
        {"prefill_tokens": 64}, enable_chunked_prefill=False, max_num_batched_tokens=40_960
    )
    bench.add("first", tokens(0, 500), 40, planned(bench, 0))
    bench.step()
    bench.add("second", tokens(10_000, 200), 40, planned(bench, 1))
    bench.finish()
    assert 200 in [step.get("second") for step in bench.steps]
