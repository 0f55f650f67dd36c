"""Calls and prompt lengths of the benchmark workflows are the published ones."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from statistics import mean

import pytest

pytest.importorskip("vllm")

from benchmarks.output_lengths import output_lengths
from benchmarks.workflows import WORKFLOWS
from benchmarks.workflows.sharing import PROFILES
from helium.plan.interpret import interpret
from vllm_helium.simulator.fake_model import FakeModel
from vllm_helium.simulator.tokenizer import PieceTokenizer

CALLS = {
    "mapreduce-mmlu": 3_000,
    "mapreduce-tatqa": 4_800,
    "debate-mmlu": 1_200,
    "debate-tatqa": 3_600,
    "reflection-tatqa": 4_800,
    "iterative-amazon": 1_200,
    "parallel-amazon": 5_000,
    "trading-8b": 1_408,
}
"""At the published number of rows."""

LENGTHS = {
    "mapreduce-mmlu": {"expert": (165, 294), "summarizer": (4_380, 168)},
    "mapreduce-tatqa": {"expert": (581, 391), "summarizer": (3_385, 250)},
    "debate-mmlu": {"round_1": (156, 298), "round_2": (1_129, 360)},
    "debate-tatqa": {"round_1": (572, 376), "round_2": (1_778, 404)},
    "reflection-tatqa": {
        "analyst": (728, 120),
        "extraction_critic": (766, 258),
        "calculation_critic": (1_035, 511),
        "revision": (1_662, 139),
    },
    "iterative-amazon": {"summary_1": (1_082, 216), "summary_[2-6]": (1_421, 401)},
    "parallel-amazon": {"extract": (1_544, 435), "summary": (3_367, 512), "writer": (4_458, 512)},
    "trading-8b": {
        "extract_price": (16_606, 512),
        "extract_indicators": (18_615, 512),
        "fundamentals_analyst/summary": (2_658, 512),
        "market_analyst/summary": (1_921, 512),
        "research_manager": (2_288, 512),
        "trader": (778, 473),
        "risky/round_1": (2_800, 512),
        "risky/round_2": (4_900, 512),
        "judge": (3_366, 512),
        "fund_manager": (4_387, 512),
    },
}
"""Workflow -> operators -> mean tokens of prompt and answer, as Qwen3-8B counts them."""

TOLERANCE = 0.15
"""Of means: texts are of the right number of words, tokenizers and answers differ."""


@cache
def _lengths(workflow: str) -> dict[str, list[tuple[int, int]]]:
    tokenizer = PieceTokenizer()
    model = FakeModel(tokenizer, output_lengths(workflow, spread=0.0))
    found = defaultdict(list)

    def answer(call, operator, row):
        messages = [{"role": role, "content": content} for role, content in call.messages]
        prompt = tokenizer.token_ids(tokenizer.render_chat(messages, add_reply=True))
        outputs = model.answer(call)
        found[operator].append((len(prompt), len(outputs[0].token_ids)))
        return tuple(output.text for output in outputs)

    interpret(WORKFLOWS[workflow](size=2).compile(), answer)
    return found


@pytest.mark.parametrize("workflow", CALLS)
def test_a_workflow_makes_the_published_number_of_calls(workflow):
    compiled = WORKFLOWS[workflow](**({"size": 16} if "trading" in workflow else {})).compile()
    rows = (compiled.rows.num_rows(operator.name) for operator in compiled.plan.llm_operators)
    assert sum(rows) == CALLS[workflow]


@pytest.mark.parametrize(
    ("workflow", "operators"), [(name, agent) for name in LENGTHS for agent in LENGTHS[name]]
)
def test_prompts_and_answers_have_the_published_lengths(workflow, operators):
    calls = [
        length
        for name, lengths in _lengths(workflow).items()
        if re.search(operators, name)
        for length in lengths
    ]
    for index, published in enumerate(LENGTHS[workflow][operators]):
        assert mean(call[index] for call in calls) == pytest.approx(published, rel=TOLERANCE)


def test_a_row_of_trading_has_the_published_tokens():
    calls = [length for lengths in _lengths("trading-8b").values() for length in lengths]
    assert sum(prompt for prompt, _ in calls) / 2 == pytest.approx(304_000, rel=0.05)
    assert sum(output for _, output in calls) / 2 == pytest.approx(44_700, rel=0.05)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_shares_and_answers_as_much_as_it_says(profile):
    system, context, question, output = PROFILES[profile]
    for operator, lengths in _lengths(f"sharing-{profile}").items():
        for prompt, answer in lengths:
            assert answer == output
            if operator.endswith("round_1"):
                assert prompt == pytest.approx(system + context + question, rel=TOLERANCE)
