"""A real engine computes a plan's static prefix ahead of its calls, and answers the same."""

import msgspec
import pytest

from helium.protocol import EnginePlan, PlanOperator, TemplateNode, WorkflowContext

pytestmark = [pytest.mark.engine, pytest.mark.slow]

HEAD = [1 + number % 200 for number in range(130)]


def test_prewarming_serves_the_first_call_and_changes_no_answer(run_engine):
    plan = EnginePlan(
        version=1,
        workflow="w",
        operators=(PlanOperator(name="a", rank=0, num_calls=4, template=(1, 2)),),
        templates=(
            TemplateNode(parent=0),
            TemplateNode(parent=0, num_tokens=len(HEAD), token_ids=tuple(HEAD)),
            TemplateNode(parent=1, num_tokens=20),
        ),
    )
    rounds = [[HEAD + [7 * row + k for k in range(1, 21)]] for row in range(4)]
    contexts = [
        [msgspec.to_builtins(WorkflowContext(plan=plan.digest(), run="r", operator="a", row=row))]
        for row in range(4)
    ]
    plans = [plan.to_json().decode()]
    stock = run_engine(rounds)
    warm = run_engine(rounds, helium=True, plans=plans, workflows=contexts)
    cold = run_engine(rounds, helium={"prewarm": False}, plans=plans, workflows=contexts)
    answers = [[output.token_ids for [output] in engine] for engine in (stock, warm, cold)]
    assert answers[0] == answers[1] == answers[2]
    assert [engine[0][0].num_cached_tokens for engine in (stock, warm, cold)] == [0, 128, 0]
    assert all(
        w[0].num_cached_tokens >= s[0].num_cached_tokens for w, s in zip(warm, stock, strict=True)
    )
