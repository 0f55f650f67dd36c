"""Engines that share a pytest process, one after the other and side by side."""

import gc

import pytest

from tests.in_process_engine import in_process_llm

pytestmark = pytest.mark.engine


def greedy(llm, text):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    (output,) = llm.generate([text], params, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def test_an_ended_engine_in_a_cycle_does_not_touch_the_next_one(tiny_model):
    from vllm import envs

    with in_process_llm(tiny_model) as llm:
        first = greedy(llm, "a garden")
        cycle = [llm]
        cycle.append(cycle)
        del llm
    assert envs.VLLM_ENABLE_V1_MULTIPROCESSING, "read anew, with the engine's environment undone"
    with in_process_llm(tiny_model, helium=True) as llm:
        assert greedy(llm, "a garden") == first
        del cycle
        gc.collect()
        assert greedy(llm, "a garden") == first


def test_of_two_open_engines_the_first_to_end_does_not_stop_the_other(tiny_model):
    with in_process_llm(tiny_model) as outer:
        with in_process_llm(tiny_model) as inner:
            first = greedy(inner, "a pond")
        assert greedy(outer, "a pond") == first
