"""Rows go one after the other, but for calls that a long chain waits for."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from helium.protocol import EnginePlan, PlanOperator, WorkflowContext
from tests.unit.scheduler.bench import Bench, tokens

PLAN = EnginePlan(
    1,
    "chain",
    (
        PlanOperator("first", rank=0, num_calls=9, output_tokens=4),
        PlanOperator("last", rank=1, num_calls=9, output_tokens=4, reads=("first",)),
    ),
)
CALLS = [("last", 0), ("last", 1), ("first", 1), ("first", 2), ("first", 3), ("first", 4)]


@pytest.mark.parametrize(
    ("helium", "expected"),
    [
        ({"stage_rows": 0}, ["last 0", "first 1", "last 1", "first 2", "first 3", "first 4"]),
        ({"stage_rows": 2}, ["first 1", "last 0", "first 2", "last 1", "first 3", "first 4"]),
        (
            {"order": "plan", "stage_rows": 2},
            ["first 1", "first 2", "first 3", "first 4", "last 0", "last 1"],
        ),
    ],
)
def test_a_call_goes_ahead_by_the_chain_that_waits_for_it(helium, expected):
    bench = Bench(helium, max_num_seqs=1)
    digest = bench.register(PLAN)
    for number, (operator, row) in enumerate(CALLS):
        context = WorkflowContext(digest, "run", operator, row=row)
        bench.add(f"{operator} {row}", tokens(1_000 * number, 20), 2, context)
    bench.finish()
    assert bench.admitted() == expected
