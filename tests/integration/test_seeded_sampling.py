"""A seed gives the same tokens however its prompt is cut into chunks, and never ends the engine."""

import pytest

from tests.in_process_engine import in_process_llm

pytestmark = pytest.mark.engine

PROMPTS = [f"{letter}: {letter * 3} one word after the other " * 8 for letter in "abcd"]


@pytest.fixture(scope="module")
def llm(tiny_model):
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "max_model_len": 512}
    # 40 blocks of 32 tokens hold the prompts, but not what is generated as well.
    with in_process_llm(tiny_model, helium=True, num_gpu_blocks_override=40, **options) as llm:
        yield llm


def sample(llm, prompts):
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.0, seed=7, max_tokens=90, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_chunks_and_preemption_change_no_token_of_a_seed(llm):
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    steps = []
    schedule, preempt = scheduler.schedule, scheduler._preempt_request

    def watch(*args, **kwargs):
        output = schedule(*args, **kwargs)
        steps.append(dict(output.num_scheduled_tokens))
        return output

    preempted = []

    def count(request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler.schedule, scheduler._preempt_request = watch, count
    try:
        together = sample(llm, PROMPTS)
        num_steps = len(steps)
        assert preempted, "the requests must have been preempted"
        assert sum(any(n > 1 for n in step.values()) for step in steps) > 12, "chunks, several each"
        for prompt, tokens in zip(PROMPTS, together, strict=True):
            sample(llm, [prompt])  # leaves the prompt in the cache
            del steps[:]
            assert sample(llm, [prompt]) == [tokens]
            assert sum(map(bool, steps)) == 90, "the prompt in one piece: a step per token"
    finally:
        del scheduler.schedule, scheduler._preempt_request
    assert num_steps > 90
    assert len({tuple(tokens) for tokens in together}) == len(PROMPTS)
