"""Two engines against one: the same outputs, and prefixes kept together by the planner."""

import pytest

pytest.importorskip("vllm")

from benchmarks.runtime.placement import run_placement


@pytest.mark.slow
def test_the_planner_computes_fewer_prompt_tokens_than_round_robin():
    runs = {
        placement: run_placement("trading-4b", placement, rows=2, num_engines=2, scale=0.25)
        for placement in ("one_engine", "round_robin", "planner")
    }
    assert runs["planner"][1].outputs == runs["round_robin"][1].outputs
    assert runs["planner"][1].outputs == runs["one_engine"][1].outputs
    prefill = {name: figures["num_prefill_tokens"] for name, (figures, _) in runs.items()}
    assert prefill["planner"] < prefill["round_robin"]
