"""What a plan expects of its calls is a client's word; others' turns do not hang on it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from tests.unit.scheduler.bench import Bench, tokens


def plan(name, output_tokens):
    return EnginePlan(
        1, name, (PlanOperator("op", rank=0, num_calls=9, output_tokens=output_tokens),)
    )


def turns_after_calls_that_expect(output_tokens):
    """Turns of two runs, one with long and one with short prompts, after others are through."""
    bench = Bench(max_num_seqs=4)
    before = bench.register(plan("before", output_tokens))
    now = bench.register(plan("now", 1.0))
    for row in range(4):
        for run in ("x", "y"):  # two of one tenant: each is charged twice
            context = WorkflowContext(before, run, "op", row=row)
            bench.add(f"{run}{row}", tokens(10_000 * row + ord(run), 20), 1, context)
    bench.finish()
    for row in range(8):
        for run, length in (("long", 400), ("short", 20)):
            context = WorkflowContext(now, run, "op", row=row)
            start = 100_000 + 1_000 * row + 500 * (run == "long")
            bench.add(f"{run} {row}", tokens(start, length), 1, context)
    bench.finish()
    return [name.split()[0] for name in bench.admitted() if " " in name]


@pytest.mark.parametrize("output_tokens", [1e9, 1e300, 1.7e308])
def test_an_absurd_estimate_changes_nobody_elses_turns(output_tokens):
    turns = turns_after_calls_that_expect(output_tokens)
    assert turns == turns_after_calls_that_expect(1.0)
    assert turns[:6].count("short") == 5, "shares are by tokens, not by calls"
