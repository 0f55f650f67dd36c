"""Shorter decode steps: the same steps, hits, evictions and times, with less of upstream's work."""

from __future__ import annotations

import random

import pytest

from helium.cost import RooflineModel

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator

from vllm_helium.simulator import engine as engine_module
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.virtual_time import VirtualClock

COST = RooflineModel.preset("H100-80GB", "Qwen3-8B")


def _run(monkeypatch, is_short: bool, **options):
    """Runs calls with shared openings; returns all figures and how often blocks are indexed."""
    if not is_short:
        monkeypatch.setattr(engine_module, "shorten_decode_steps", lambda scheduler: None)
    generator = random.Random(11)
    openings = [[generator.randrange(9_999) for _ in range(n)] for n in (90, 70, 33)]
    clock = VirtualClock()
    engine = SimulatedEngine(
        EngineOptions(max_num_batched_tokens=256, max_num_seqs=12, **options), COST, clock
    )
    num_cached, cache = 0, UnitaryKVCacheCoordinator.cache_blocks

    def counted(self, *args, **kwargs):
        nonlocal num_cached
        num_cached += 1
        return cache(self, *args, **kwargs)

    monkeypatch.setattr(UnitaryKVCacheCoordinator, "cache_blocks", counted)
    with clock.as_time():
        for number in range(40):
            tail = [generator.randrange(9_999) for _ in range(generator.randrange(5, 120))]
            output = [generator.randrange(9_999) for _ in range(generator.randrange(2, 70))]
            params = SamplingParams(temperature=0.0, max_tokens=len(output), ignore_eos=True)
            prompt = [*openings[number % 3], *tail]
            engine.add(f"call-{number}", prompt, output, params, lambda record: None)
        engine.prepare()
        while (event_s := engine.next_event_s()) is not None:
            clock.advance_to(event_s)
            engine.happen()
            engine.prepare()
    return engine.measured().to_dict(), engine.calls, num_cached


@pytest.mark.parametrize("helium", [False, True])
@pytest.mark.parametrize("num_blocks", [60, 400])
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_shorter_steps_change_no_figure(helium, num_blocks, async_scheduling):
    options = {
        "helium": helium, "num_blocks": num_blocks, "async_scheduling": async_scheduling
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        *expected, num_before = _run(patch, is_short=False, **options)
    with pytest.MonkeyPatch.context() as patch:
        *found, num_after = _run(patch, is_short=True, **options)
    assert found == expected
    assert found[0]["num_cached_tokens"] > 0
    # Our manager looks ahead by itself in `allocate_slots`; the other call is asynchronous only.
    assert num_after < num_before / 2 or (helium and not async_scheduling)
    if num_blocks == 60:
        assert found[0]["num_evictions"] > 0 and found[0]["num_preemptions"] > 0
