"""One engine in virtual time: every second and every block by hand."""

from __future__ import annotations

import pytest

from helium.cost import RooflineModel
from helium.errors import ConfigError, EngineError

pytest.importorskip("vllm")

from vllm import SamplingParams

from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.figures import CallRecord, EngineFigures, quantile
from vllm_helium.simulator.virtual_time import VirtualClock

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")


class _Bench:
    """An engine, driven to the end by hand."""

    def __init__(self, **options) -> None:
        self.clock = VirtualClock()
        options = {"num_blocks": 200, "async_scheduling": False, **options}
        self.engine = SimulatedEngine(EngineOptions(**options), COST, self.clock)
        self.ended: list[CallRecord] = []

    def add(self, name: str, prompt: list[int], num_output: int) -> None:
        output = [1_000_000 + number for number in range(num_output)]
        params = SamplingParams(temperature=0.0, max_tokens=num_output)
        self.engine.add(name, prompt, output, params, self.ended.append)

    def finish(self) -> dict[str, CallRecord]:
        self.engine.prepare()
        while (event_s := self.engine.next_event_s()) is not None:
            self.clock.advance_to(event_s)
            self.engine.happen()
            self.engine.prepare()
        return {record.request_id: record for record in self.ended}

    def figures(self) -> EngineFigures:
        return self.engine.measured()


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def test_time_is_the_sum_of_the_steps():
    bench = _Bench()
    bench.add("call", tokens(0, 100), num_output=4)
    record = bench.finish()["call"]

    steps_ms = [
        COST.step_ms(100, 50, 0, 0),
        COST.step_ms(0, 0, 1, 101),
        COST.step_ms(0, 0, 1, 102),
        COST.step_ms(0, 0, 1, 103),
    ]
    assert bench.clock.now() == pytest.approx(sum(steps_ms) / 1e3, rel=1e-12)
    assert record.first_token_s == pytest.approx(steps_ms[0] / 1e3, rel=1e-12)
    assert record.latency_s == record.finish_s == bench.clock.now()
    figures = bench.figures()
    assert figures.busy_s == pytest.approx(bench.clock.now(), rel=1e-12)
    assert (figures.num_steps, figures.num_prefill_tokens, figures.num_decode_tokens) == (4, 100, 3)
    assert (figures.num_calls, figures.num_output_tokens) == (1, 4)


def test_a_long_prompt_is_computed_in_chunks():
    bench = _Bench(max_num_batched_tokens=64, max_num_seqs=8)
    bench.add("call", tokens(0, 150), num_output=1)
    bench.finish()

    chunks = [COST.step_ms(64, 32, 0, 0), COST.step_ms(64, 96, 0, 0), COST.step_ms(22, 139, 0, 0)]
    assert bench.clock.now() == pytest.approx(sum(chunks) / 1e3, rel=1e-12)


@pytest.mark.parametrize("is_async", [False, True])
def test_hits_equal_a_hand_count(is_async):
    bench = _Bench(async_scheduling=is_async)
    system = tokens(0, 40)  # two blocks of 16 and a half
    bench.add("first", system + tokens(100, 30), num_output=20)
    bench.finish()
    bench.add("same prefix", system + tokens(200, 30), num_output=1)
    bench.add("same prompt", system + tokens(100, 30), num_output=1)
    # 70 prompt and 19 of 20 output tokens have KV: 89 tokens, five full blocks.
    bench.add("continued", system + tokens(100, 30) + tokens(1_000_000, 20), num_output=1)
    bench.add("stranger", tokens(500, 70), num_output=1)
    records = bench.finish()

    cached = {name: record.num_cached_tokens for name, record in records.items()}
    assert cached == {
        "first": 0,
        "same prefix": 32,
        "same prompt": 64,
        "continued": 80,
        "stranger": 0,
    }
    figures = bench.figures()
    assert figures.num_cached_tokens == 176
    assert figures.num_prefill_tokens == figures.num_missed_tokens == 4 * 70 + 90 - 176


def test_without_prefix_caching_nothing_hits():
    bench = _Bench(enable_prefix_caching=False)
    for name in ("first", "second"):
        bench.add(name, tokens(0, 64), num_output=2)
        bench.finish()
    assert bench.figures().num_cached_tokens == 0
    assert bench.figures().num_prefill_tokens == 128


def test_evictions_are_the_cached_blocks_that_made_room():
    bench = _Bench(num_blocks=11)  # ten to hand out
    bench.add("old", tokens(0, 81), num_output=1)  # five full blocks stay cached, one is partial
    bench.finish()
    assert bench.figures().num_evictions == 0
    bench.add("new", tokens(1_000, 113), num_output=1)  # eight blocks, five of them are free
    records = bench.finish()
    assert bench.figures().num_evictions == 3
    assert records["new"].num_cached_tokens == 0
    bench.add("old again", tokens(0, 81), num_output=1)
    # The last three blocks of the old prompt went first.
    assert bench.finish()["old again"].num_cached_tokens == 32


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("helium", [False, True])
def test_too_few_blocks_preempt_and_still_end(is_async, helium):
    bench = _Bench(num_blocks=25, async_scheduling=is_async, helium=helium)
    for number in range(6):
        bench.add(f"call {number}", tokens(1_000 * number, 50), num_output=120)
    records = bench.finish()

    assert len(records) == 6
    assert all(record.num_output_tokens == 120 for record in records.values())
    assert all(record.num_prompt_tokens == 50 for record in records.values())
    figures = bench.figures()
    assert figures.num_preemptions == sum(r.num_preemptions for r in records.values()) > 0
    assert figures.num_prefill_tokens > 300  # what was preempted was computed again
    assert figures.num_output_tokens == 720


def test_asynchronous_scheduling_computes_one_token_too_many_after_a_stop():
    def count(is_async: bool) -> tuple[int, int]:
        bench = _Bench(async_scheduling=is_async)
        params = SamplingParams(temperature=0.0, max_tokens=50)
        params.update_from_generation_config({}, 7)
        bench.engine.add("call", tokens(100, 20), [1, 2, 7], params, bench.ended.append)
        records = bench.finish()
        return records["call"].num_output_tokens, bench.figures().num_decode_tokens

    assert count(False) == (3, 2)
    assert count(True) == (3, 3)


def test_an_aborted_call_leaves_the_engine():
    bench = _Bench()
    bench.add("kept", tokens(0, 30), num_output=5)
    bench.add("dropped", tokens(100, 30), num_output=50)
    bench.engine.prepare()
    bench.engine.abort("dropped")
    assert set(bench.finish()) == {"kept"}
    assert bench.figures().num_output_tokens == 5
    bench.engine.reset_prefix_cache()


def test_reset_forgets_what_was_cached():
    bench = _Bench()
    bench.add("first", tokens(0, 64), num_output=2)
    bench.finish()
    bench.engine.reset_prefix_cache()
    bench.add("second", tokens(0, 64), num_output=2)
    assert bench.finish()["second"].num_cached_tokens == 0


def test_reset_while_a_call_is_under_way_is_refused():
    bench = _Bench()
    bench.add("call", tokens(0, 64), num_output=40)
    bench.engine.prepare()
    with pytest.raises(EngineError, match="in use"):
        bench.engine.reset_prefix_cache()


def test_a_sequence_that_can_never_fit_is_refused():
    bench = _Bench(num_blocks=5)
    with pytest.raises(EngineError, match="1 to 64 tokens"):
        bench.add("call", tokens(0, 60), num_output=5)
    assert bench.finish() == {}


def test_blocks_come_from_the_memory_of_the_device():
    assert EngineOptions().blocks_on(COST) == COST.kv_capacity_tokens // 16
    with pytest.raises(ConfigError, match="3 or more"):
        EngineOptions(num_blocks=2).blocks_on(COST)


def test_quantiles_are_values_that_occur():
    assert [quantile([3, 1, 2, 4], q) for q in (0, 0.5, 0.75, 1)] == [1, 2, 3, 4]
