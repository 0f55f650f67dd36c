"""The bound on the makespan: by hand for a few calls, and below what any system takes."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from benchmarks.baselines.systems import system
from benchmarks.lower_bound import Calls, bounds, lower_bound, main
from benchmarks.simulated_run import Setting, run_system
from helium.cost import RooflineModel

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")


def test_one_call_takes_its_prefill_and_a_step_per_token():
    bound = lower_bound(Calls([1_000], [1_000], [101], 1_000, [0], [0]), COST)
    steps_ms = COST.step_ms(1_000, 500, 0, 0)
    steps_ms += sum(COST.step_ms(0, 0, 1, 1_000 + n) for n in range(100))
    assert 0.9 * steps_ms / 1e3 < bound.makespan_s <= steps_ms / 1e3
    assert bound.num_steps == 101


def test_calls_that_do_not_fit_together_take_more_steps():
    capacity = COST.kv_capacity_tokens
    prompt, output = capacity // 4, 11  # four fit; forty take ten turns
    alone = Calls([prompt] * 40, [prompt] * 40, [output] * 40, 40 * prompt, [0] * 40, [0] * 40)
    assert lower_bound(alone, COST).num_steps == pytest.approx(10 * (output - 1), abs=2)
    assert lower_bound(alone, COST, 2 * capacity).num_steps == pytest.approx(
        5 * (output - 1), abs=2
    )
    shared = Calls([prompt] * 40, [prompt / 40] * 40, [output] * 40, prompt, [0] * 40, [0] * 40)
    assert lower_bound(shared, COST).num_steps == output


def test_what_comes_before_and_after_the_widest_part_adds_steps():
    capacity = COST.kv_capacity_tokens
    prompt, output = capacity // 4, 11
    heads, tails = [0] + [100] * 40 + [100 + output], [50 + output] + [50] * 40 + [0]
    prompts, outputs = [1, *[prompt] * 40, 1], [100, *[output] * 40, 50]
    calls = Calls(prompts, prompts, outputs, 40 * prompt, heads, tails)
    assert calls.critical_tokens == 100 + output + 50
    assert lower_bound(calls, COST).num_steps == pytest.approx(100 + 10 * (output - 1) + 50, abs=2)


@pytest.mark.parametrize("is_distinct", [False, True])
def test_no_system_is_faster_than_the_bound(is_distinct):
    setting = Setting("trading-4b", rows=2, is_distinct=is_distinct, scale=0.1, max_tokens=24)
    found = bounds(setting)
    for name, variant in (("langgraph", "as written"), ("helium", "optimized")):
        calls, bound = found[variant]
        figures = run_system(setting, system(name))["figures"]
        assert figures["num_calls"] == len(calls.output_tokens)
        assert figures["num_output_tokens"] == sum(calls.output_tokens)
        assert calls.num_new_tokens <= figures["num_prefill_tokens"]
        assert bound.makespan_s <= figures["makespan_s"]


def test_the_command_prints_both_variants(capsys):
    main(["--workflow", "debate-mmlu", "--rows", "2"])
    title, written, optimized = capsys.readouterr().out.splitlines()
    assert title.startswith("debate-mmlu, 2 rows")
    assert "as written: " in written and "optimized: " in optimized
