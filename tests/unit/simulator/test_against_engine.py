"""The simulator schedules what a real engine of the same size schedules, step by step."""

from __future__ import annotations

import itertools
import random

import pytest

from helium.cost import RooflineModel

pytest.importorskip("vllm")

from vllm import SamplingParams

from tests.in_process_engine import in_process_llm
from vllm_helium.models.tiny import make_tiny_llama
from vllm_helium.simulator.engine import SimulatedEngine
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.evictions import count_evictions
from vllm_helium.simulator.virtual_time import VirtualClock

pytestmark = pytest.mark.engine

NUM_OUTPUT = 40
LIMITS = {"block_size": 32, "max_num_seqs": 6, "max_num_batched_tokens": 256, "max_model_len": 512}
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True)


def _first_round() -> list[list[int]]:
    """Prompts with one of three openings, so that some prefixes are shared."""
    generator = random.Random(7)
    openings = [[generator.randrange(256) for _ in range(n)] for n in (100, 64, 33)]
    return [
        [*openings[i % 3], *(generator.randrange(256) for _ in range(generator.randrange(5, 150)))]
        for i in range(14)
    ]


def _watch(scheduler) -> list[list[int]]:
    """Notes the tokens every request gets, step by step."""
    steps: list[list[int]] = []
    schedule = scheduler.schedule

    def watched(*args, **kwargs):
        scheduled = schedule(*args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            steps.append(list(scheduled.num_scheduled_tokens.values()))
        return scheduled

    scheduler.schedule = watched
    return steps


@pytest.mark.parametrize("num_blocks", [21, 60])
@pytest.mark.parametrize("helium", [False, True])
def test_steps_hits_and_evictions_are_those_of_the_cpu_engine(tmp_path, helium, num_blocks):
    model = make_tiny_llama(tmp_path / "llama")
    options = LIMITS | {"num_gpu_blocks_override": num_blocks, "helium": helium}
    with in_process_llm(model, **options) as llm:
        _compare(llm, helium, num_blocks)


def _compare(llm, helium: bool, num_blocks: int) -> None:
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    num_evictions, steps = count_evictions(scheduler), _watch(scheduler)

    clock = VirtualClock()
    options = EngineOptions(num_blocks=num_blocks, async_scheduling=False, helium=helium, **LIMITS)
    simulated = SimulatedEngine(options, RooflineModel.preset("H100-80GB", "Qwen3-8B"), clock)
    simulated_steps = _watch(simulated.scheduler)
    assert type(simulated.scheduler) is type(scheduler)
    ids = itertools.count()

    prompts = _first_round()
    for _ in range(2):
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], PARAMS, use_tqdm=False
        )
        first = len(simulated.calls)
        for prompt, output in zip(prompts, outputs, strict=True):
            simulated.add(
                f"{next(ids):04d}",
                list(prompt),
                output.outputs[0].token_ids,
                PARAMS,
                lambda record: None,
            )
        simulated.prepare()
        while (event_s := simulated.next_event_s()) is not None:
            clock.advance_to(event_s)
            simulated.happen()
            simulated.prepare()
        records = sorted(simulated.calls[first:], key=lambda record: record.request_id)
        hits = [record.num_cached_tokens for record in records]
        assert hits == [output.num_cached_tokens for output in outputs]
        # The second round continues every conversation.
        prompts = [
            [*prompt, *output.outputs[0].token_ids, 33, 34, 35]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    assert simulated_steps == steps
    figures = simulated.measured()
    assert figures.num_evictions == num_evictions() > 0
    assert figures.num_prefill_tokens + figures.num_decode_tokens == sum(map(sum, steps))
    assert figures.num_cached_tokens > 0
    assert (figures.num_preemptions > 0) == (num_blocks == 21)
