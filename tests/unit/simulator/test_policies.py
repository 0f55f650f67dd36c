"""Policies from the literature, each on the smallest case that shows what it does."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.policies.belady import belady_bound
from helium.cost import RooflineModel
from helium.protocol import (
    PROTOCOL_VERSION,
    EnginePlan,
    PlanOperator,
    TemplateNode,
    WorkflowContext,
)
from vllm_helium.simulator.access_trace import AccessTrace

pytest.importorskip("vllm")

from vllm import SamplingParams

from benchmarks.policies.kvflow import AgentSteps
from vllm_helium.request import write_context
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.virtual_time import VirtualClock

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")
STOCK = None
LSPF = "benchmarks.policies.lspf.LspfScheduler"
RANDOM = "benchmarks.policies.random_order.RandomOrderScheduler"
KVFLOW = "benchmarks.policies.kvflow.KvFlowScheduler"


class _Bench:
    def __init__(self, scheduler_cls: str | None, num_blocks: int = 2_000, num_seqs: int = 1):
        self.clock = VirtualClock()
        options = EngineOptions(
            num_blocks=num_blocks, max_num_seqs=num_seqs, scheduler_cls=scheduler_cls
        )
        self.engine = SimulatedEngine(options, COST, self.clock)
        self.order: list[str] = []
        self.cached: dict[str, int] = {}

    def add(self, name: str, prompt: list[int], context: WorkflowContext | None = None) -> None:
        extra_args: dict = {}
        write_context(extra_args, context)
        params = SamplingParams(temperature=0.0, max_tokens=2, extra_args=extra_args or None)
        self.engine.add(name, prompt, [1, 2], params, self._finished)

    def _finished(self, record) -> None:
        self.order.append(record.request_id)
        self.cached[record.request_id] = record.num_cached_tokens

    def run(self) -> list[str]:
        self.engine.prepare()
        while (event_s := self.engine.next_event_s()) is not None:
            self.clock.advance_to(event_s)
            self.engine.happen()
            self.engine.prepare()
        order, self.order = self.order, []
        return order


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def _mixed_queue(bench: _Bench, num_strangers: int = 3) -> list[str]:
    """A cached prefix, then strangers, then two calls that share more and more of it."""
    bench.add("cached", tokens(0, 320))
    bench.run()
    for number in range(num_strangers):
        bench.add(f"stranger {number}", tokens(10_000 * (number + 1), 320))
    bench.add("half", tokens(0, 160) + tokens(5_000, 160))
    bench.add("whole", tokens(0, 320) + tokens(6_000, 16))
    return bench.run()


def test_lspf_serves_the_longest_cached_prefix_first():
    assert _mixed_queue(_Bench(STOCK))[-2:] == ["half", "whole"]
    assert _mixed_queue(_Bench(LSPF)) == ["whole", "half", *(f"stranger {n}" for n in range(3))]


def test_lspf_falls_back_to_arrival_beyond_128_waiting_calls():
    order = _mixed_queue(_Bench(LSPF, num_blocks=8_000), num_strangers=150)
    # 152 wait at first; the sorting starts when 128 are left.
    assert order[:20] == [f"stranger {number}" for number in range(20)]
    assert order[22:30] != [f"stranger {number}" for number in range(22, 30)]
    assert order.index("whole") < 30 and order.index("whole") < order.index("half")


def test_lspf_lets_one_of_several_equal_new_prefixes_go_first():
    bench = _Bench(LSPF, num_seqs=2)
    for name, start in (("a1", 0), ("a2", 0), ("b1", 1_000)):
        bench.add(name, tokens(start, 64) + tokens(start + 20_000, 16))
    bench.run()
    assert bench.cached == {"a1": 0, "b1": 0, "a2": 64}


def test_random_order_is_some_other_order_and_always_the_same():
    def order(scheduler_cls: str | None) -> list[str]:
        bench = _Bench(scheduler_cls)
        for number in range(12):
            bench.add(f"call {number}", tokens(1_000 * number, 32))
        return bench.run()

    arrival = [f"call {number}" for number in range(12)]
    assert order(STOCK) == arrival
    drawn = order(RANDOM)
    assert drawn == order(RANDOM) != arrival and sorted(drawn) == sorted(arrival)


def _two_agents(num_calls: int) -> EnginePlan:
    """An agent of 64 fixed tokens, and one of 32 that reads it."""
    return EnginePlan(
        PROTOCOL_VERSION,
        "workflow",
        (
            PlanOperator("writer", 0, num_calls, 2.0, (1, 2)),
            PlanOperator("editor", 1, num_calls, 2.0, (3, 4), ("writer",)),
        ),
        (
            TemplateNode(0),
            TemplateNode(0, 64, tuple(tokens(0, 64)), num_calls),
            TemplateNode(1, 100, None, num_calls),
            TemplateNode(0, 32, tuple(tokens(500, 32)), num_calls),
            TemplateNode(3, 100, None, num_calls),
        ),
    )


def test_steps_to_execution_follow_the_nearest_row():
    steps = AgentSteps(_two_agents(num_calls=2), block_size=16)
    assert (steps.num_fixed_blocks("writer"), steps.num_fixed_blocks("editor")) == (4, 2)
    assert (steps.steps("writer"), steps.steps("editor")) == (1, 2)
    steps.arrive("writer", 0)
    assert (steps.steps("writer"), steps.steps("editor")) == (0, 1)
    steps.leave("writer")
    assert steps.steps("writer") == 1  # of the other row
    steps.arrive("editor", 0)
    assert steps.steps("editor") == 0
    steps.leave("editor")
    assert (steps.steps("writer"), steps.steps("editor")) == (1, 2)
    for name in ("writer", "editor"):
        steps.arrive(name, 1)
        steps.leave(name)
    assert (steps.steps("writer"), steps.steps("editor")) == (math.inf, math.inf)


@pytest.mark.parametrize(("scheduler_cls", "num_kept"), [(STOCK, 0), (KVFLOW, 64)])
def test_kvflow_keeps_fixed_prompts_when_varying_ones_come_by(scheduler_cls, num_kept):
    bench = _Bench(scheduler_cls, num_blocks=41)  # forty to hand out
    plan = _two_agents(num_calls=9)
    if scheduler_cls == KVFLOW:
        bench.engine.scheduler.helium_rpc("register_plan", plan.to_json())

    def call(name: str, operator: str, row: int, prompt: list[int]) -> None:
        bench.add(name, prompt, WorkflowContext(plan.digest(), "run", operator, row=row))
        bench.run()

    call("first", "writer", 0, tokens(0, 64) + tokens(1_000, 100))
    call("other", "editor", 0, tokens(500, 32) + tokens(2_000, 280))
    call("third", "editor", 1, tokens(500, 32) + tokens(3_000, 370))
    call("again", "writer", 1, tokens(0, 64) + tokens(4_000, 100))
    assert bench.cached == {"first": 0, "other": 0, "third": 32, "again": num_kept}


def test_kvflow_gives_up_what_never_runs_again_before_what_does():
    bench = _Bench(KVFLOW, num_blocks=21)  # twenty to hand out
    plan = _two_agents(num_calls=2)
    bench.engine.scheduler.helium_rpc("register_plan", plan.to_json())

    def call(name: str, operator: str, row: int, prompt: list[int]) -> None:
        bench.add(name, prompt, WorkflowContext(plan.digest(), "run", operator, row=row))
        bench.run()

    call("w0", "writer", 0, tokens(0, 64) + tokens(1_000, 30))
    call("w1", "writer", 1, tokens(0, 64) + tokens(2_000, 30))
    call("e0", "editor", 0, tokens(500, 32) + tokens(3_000, 30))
    # Only the two blocks of the editor may stay: the writer has had its calls.
    bench.add("big", tokens(50_000, 285))
    bench.run()
    bench.add("writer's prompt", tokens(0, 64) + tokens(4_000, 20))
    bench.run()
    call("e1", "editor", 1, tokens(500, 32) + tokens(5_000, 30))
    assert bench.cached["w1"] == 64
    assert bench.cached["e1"] == 32
    assert bench.cached["writer's prompt"] == 0


@st.composite
def _traces(draw) -> AccessTrace:
    accesses = draw(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=9))
    trace = AccessTrace(block_size=16)
    trace.blocks = [block for block, _ in accesses]
    trace.is_lookup = [is_lookup for _, is_lookup in accesses]
    return trace


def _best_by_trying(trace: AccessTrace, num_blocks: int) -> int:
    """Follows every content a cache may have after each access."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for block, is_lookup in zip(trace.blocks, trace.is_lookup, strict=True):
        after: dict[frozenset[int], int] = {}
        for content, hits in best.items():
            hits += is_lookup and block in content
            fits = content | {block}
            options = {content, fits, *(fits - {victim} for victim in fits)}
            for option in options:
                if len(option) <= num_blocks:
                    after[option] = max(after.get(option, 0), hits)
        best = after
    return max(best.values())


def test_a_block_that_is_written_anew_is_not_worth_keeping_until_then():
    trace = AccessTrace(block_size=16)
    trace.blocks = [0, 1, 2, 1, 2, 2, 0]
    trace.is_lookup = [False, False, False, True, False, True, True]
    assert belady_bound(trace, 2).num_hits == 3


@settings(max_examples=300, deadline=None)
@given(_traces(), st.integers(1, 3))
def test_the_offline_bound_is_the_best_of_all_evictions(trace, num_blocks):
    bound = belady_bound(trace, num_blocks)
    assert bound.num_hits == _best_by_trying(trace, num_blocks)
    assert bound.num_hits <= bound.num_hits_unbounded <= bound.num_lookups


def test_an_engine_with_room_for_everything_reaches_the_bound():
    trace = AccessTrace(block_size=16)
    clock = VirtualClock()
    engine = SimulatedEngine(EngineOptions(num_blocks=200), COST, clock, trace=trace)
    prompts = [tokens(0, 48), tokens(0, 32) + tokens(100, 33), tokens(0, 48), tokens(200, 64)]
    params = SamplingParams(temperature=0.0, max_tokens=20)
    for number, prompt in enumerate(prompts):
        engine.add(f"call {number}", prompt, tokens(9_000, 20), params, lambda record: None)
        engine.prepare()
        while (event_s := engine.next_event_s()) is not None:
            clock.advance_to(event_s)
            engine.happen()
            engine.prepare()
    bound = belady_bound(trace, 199)
    assert bound.num_lookups == 2 + 4 + 2 + 3
    assert bound.num_hits == bound.num_hits_unbounded == 4
    assert engine.measured().num_cached_tokens == 16 * bound.num_hits
