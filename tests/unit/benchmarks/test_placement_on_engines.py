"""The placements compared on real engines make the same calls in different places."""

import asyncio

import pytest

from benchmarks.runtime.engines import plan, run_placement
from benchmarks.runtime.placement import PLACEMENTS
from helium.templates.tokenizer import WordTokenizer
from tests.unit.runtime.engines import Engine


@pytest.mark.parametrize("workflow", ["trading-4b", "mapreduce-tatqa"])
def test_every_placement_makes_the_same_calls(workflow):
    outputs, num_calls = {}, {}
    for placement in PLACEMENTS:
        engines = [Engine(), Engine()]
        num_engines = 1 if placement == "one_engine" else 2
        schedule = plan(workflow, 2, 0.02, 4, num_engines, WordTokenizer())
        result = asyncio.run(run_placement(placement, schedule, engines, "salt"))
        outputs[placement] = result.outputs
        num_calls[placement] = [len(engine.requests) for engine in engines]
        assert {r.cache_salt for engine in engines for r in engine.requests} == {"salt"}
    assert outputs["one_engine"] == outputs["round_robin"] == outputs["planner"]
    total = num_calls["one_engine"][0]
    assert num_calls["one_engine"] == [total, 0] and sum(num_calls["planner"]) == total
    assert num_calls["round_robin"] == [total // 2, total // 2] and all(num_calls["planner"])
